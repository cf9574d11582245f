//! Where a store's file may lie: on a disk of this host. A filesystem of other hosts keeps neither locks nor shared memory
//! as SQLite needs them, and what it then breaks is the file.

use anyhow::{Context as _, ensure};
use rustix::fs::{major, minor, stat, statfs};
use std::{fs, path::Path};

/// FUSE, which is local or not by what serves it.
const FUSE: u64 = 0x6573_5546;
/// Beginnings of what FUSE filesystems of other hosts are called in the table of mounts.
const FUSE_OF_OTHERS: [&str; 12] = [
    "sshfs",
    "gluster",
    "ceph",
    "s3fs",
    "gcsfuse",
    "goofys",
    "rclone",
    "davfs",
    "juicefs",
    "mfs",
    "curlftpfs",
    "smb",
];

/// Refuses a directory that other hosts serve.
pub(super) fn check(directory: &Path) -> anyhow::Result<()> {
    let shown = directory.display();
    let found = statfs(directory).with_context(|| format!("cannot look at the filesystem of {shown}"))?;
    // A number of at most 32 bits, whatever the machine's own type for it is.
    #[allow(clippy::cast_sign_loss, reason = "only its bits mean something")]
    let magic = found.f_type as u64 & 0xFFFF_FFFF;
    let kind = if magic == FUSE { mounted_as(directory) } else { None };
    if let Some(name) = of_others(magic, kind.as_deref()) {
        ensure!(false, "{shown} lies on {name}, which other hosts serve; it must be on a disk of this host");
    }
    Ok(())
}

/// What people call this filesystem, if other hosts serve it; `kind` is the word for it in the table of mounts. 9P is none
/// of them: by it guests see the disks of their own host.
fn of_others(magic: u64, kind: Option<&str>) -> Option<String> {
    let name = match magic {
        0x6969 => "NFS",
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => "SMB",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x00C3_6400 => "CephFS",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        FUSE => {
            let served = kind?.strip_prefix("fuse.")?;
            return FUSE_OF_OTHERS.iter().any(|name| served.starts_with(name)).then(|| served.to_owned());
        }
        _ => return None,
    };
    Some(name.to_owned())
}

/// The word for this directory's filesystem in the table of mounts, if it can be read.
fn mounted_as(directory: &Path) -> Option<String> {
    let device = stat(directory).ok()?.st_dev;
    let device = format!("{}:{}", major(device), minor(device));
    kind_of(&fs::read_to_string("/proc/self/mountinfo").ok()?, &device)
}

fn kind_of(mounts: &str, device: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    Some(line.split_once(" - ")?.1.split(' ').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_hosts_serve_is_told_from_a_disk_of_this_host() {
        for (magic, kind, expected) in [
            (0x6969, None, Some("NFS")),
            (0xFF53_4D42, None, Some("SMB")),
            (0xFE53_4D42, None, Some("SMB")),
            (0x517B, None, Some("SMB")),
            (0x00C3_6400, None, Some("CephFS")),
            (FUSE, Some("fuse.sshfs"), Some("sshfs")),
            (FUSE, Some("fuse.glusterfs"), Some("glusterfs")),
            (FUSE, Some("fuse.ceph-fuse"), Some("ceph-fuse")),
            (FUSE, Some("fuse.mergerfs"), None),
            (FUSE, Some("fuseblk"), None),
            (FUSE, None, None),
            // ext4, XFS, Btrfs, tmpfs, overlay, ZFS, 9P.
            (0xEF53, None, None),
            (0x5846_5342, None, None),
            (0x9123_683E, None, None),
            (0x0102_1994, None, None),
            (0x794C_7630, None, None),
            (0x2FC1_2FC1, None, None),
            (0x0102_1997, None, None),
        ] {
            assert_eq!(of_others(magic, kind).as_deref(), expected, "{magic:#x} {kind:?}");
        }
    }

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      77 22 0:61 / /home/me/far rw,nosuid shared:9 - fuse.sshfs host:/far rw,user_id=1\n";
        assert_eq!(kind_of(mounts, "0:61").as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind_of(mounts, "8:1").as_deref(), Some("ext4"));
        assert_eq!(kind_of(mounts, "0:6"), None);
    }

    #[test]
    fn a_directory_of_this_host_is_taken_and_one_that_is_not_there_is_named() {
        check(tempfile::tempdir().unwrap().path()).unwrap();
        let said = check(Path::new("/no/such/place")).unwrap_err().to_string();
        assert!(said.contains("/no/such/place"), "{said}");
    }
}
