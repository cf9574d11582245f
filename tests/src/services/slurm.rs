//! Slurm: a private cluster of one node, with its own munged and, if asked for, its own slurmdbd and MariaDB. Jobs run as
//! an ordinary account, so the harness must be root; slurmrestd, which refuses root and Slurm's own account, as another.
//! Munge and MariaDB are this machine's, whichever Slurm it is.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, getuid, kill_process};

use super::Home;
use crate::ports;
use crate::process::{Account, LastWord, Managed, guarded};
use crate::wait::until;

const START: Duration = Duration::from_mins(1);
const ANSWER: Duration = Duration::from_secs(20);
/// Who jobs run as, and who slurmrestd runs as: accounts every Linux has.
const JOBS: &str = "nobody";
const REST: &str = "daemon";
/// Where the version of cgroups lies by which Slurm 22.05 can follow processes without systemd.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// And so limit their memory.
const MEMORY: &str = "/sys/fs/cgroup/memory";
/// Limits hold for memory and swap together, and none is below `MinRAMSpace`.
const CGROUP_CONF: &str = "CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
MinRAMSpace=64
ConstrainSwapSpace=yes
AllowedSwapSpace=0
";

/// Whether the cluster keeps accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// What slurmctld forgets is forgotten.
    None,
    /// slurmdbd keeps it, in a MariaDB.
    Slurmdbd,
}

/// Which Slurm it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// What this machine has installed: Debian 12's 22.05.
    Installed,
    /// 24.11, of a Debian 13 in this directory.
    Within(PathBuf),
}

/// Runs a program of another Debian: `ROOT FOLDER UID GID TEMPORARY PROGRAM…`. What it mounts is seen by itself and its
/// children alone, and gone with the last of them. Accounts are this machine's. A change of account takes away what tells a child
/// of its parent's death, so that is set last.
const ENTER: &str = r#"
root=$1 folder=$2 uid=$3 gid=$4 temporary=$5; shift 5
mkdir -p "$root$temporary"
for shared in /proc /dev /sys "$temporary"; do mount --rbind "$shared" "$root$shared"; done
for file in /etc/passwd /etc/group /etc/hosts; do mount --bind "$file" "$root$file"; done
cd "$root"
exec chroot "$root" /usr/bin/env --chdir="$folder" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --pdeathsig=KILL --reuid="$uid" --regid="$gid" --clear-groups -- "$@"
"#;

/// A private cluster.
#[derive(Debug)]
pub struct Slurm {
    // Field order is the order of the end.
    restd: Option<Managed>,
    socket_restd: Option<Managed>,
    slurmd: Option<Managed>,
    slurmctld: Option<Managed>,
    slurmdbd: Option<Managed>,
    mariadb: Option<Managed>,
    munged: Option<Managed>,
    home: Home,
    ports: Ports,
    accounting: Accounting,
    release: Release,
}

#[derive(Debug)]
struct Ports {
    ctld: u16,
    d: u16,
    dbd: u16,
    mariadb: u16,
    rest: u16,
}

impl Slurm {
    /// A new, empty, running cluster whose slurmctld forgets a job `min_job_age` after its end, at the soonest.
    pub async fn start(release: Release, accounting: Accounting, min_job_age: Duration) -> Result<Self> {
        ensure!(getuid().is_root(), "a Slurm that runs jobs as other accounts must be started by root");
        let home = Home::create("root")?;
        let [ctld, d, dbd, mariadb, rest] =
            [ports::free()?, ports::free()?, ports::free()?, ports::free()?, ports::free()?];
        let ports = Ports { ctld, d, dbd, mariadb, rest };
        for (folder, account) in [("munge", "munge"), ("state", "slurm"), ("spool", "root"), ("my", "mysql")]
        {
            if folder != "my" || accounting == Accounting::Slurmdbd {
                give(&home.file(folder), account)?;
            }
        }
        let mut slurm = Self {
            restd: None,
            socket_restd: None,
            slurmd: None,
            slurmctld: None,
            slurmdbd: None,
            mariadb: None,
            munged: None,
            home,
            ports,
            accounting,
            release,
        };
        slurm.secret("munge/key", "munge", 1024)?;
        slurm.secret("state/jwt.key", "slurm", 32)?;
        slurm.home.write("slurm.conf", &slurm.configuration(min_job_age)?)?;
        slurm.home.write("cgroup.conf", CGROUP_CONF)?;
        slurm.start_munged().await?;
        if accounting == Accounting::Slurmdbd {
            slurm.start_accounting().await?;
        }
        slurm.start_slurmctld().await?;
        slurm.start_slurmd().await?;
        slurm.start_restd().await?;
        Ok(slurm)
    }

    /// Whether jobs get no more memory than they asked for; the kernel must offer what this Slurm can use.
    pub fn limits_memory() -> bool {
        follows_strays() && Path::new(MEMORY).join("tasks").is_file()
    }

    /// What Slurm's commands find it by.
    pub fn conf(&self) -> PathBuf {
        self.home.file("slurm.conf")
    }

    /// Where slurmrestd listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.rest)
    }

    /// The account jobs run as.
    pub fn account(&self) -> &'static str {
        JOBS
    }

    /// A command that prints a token of `{user}` that lives so long.
    pub fn token_command(&self, lifespan: Duration) -> Vec<String> {
        let conf = format!("SLURM_CONF={}", self.home.file("slurm.conf").display());
        let mut words = vec!["/usr/bin/env".to_owned(), conf];
        words.extend(self.within(None));
        words.extend(["scontrol", "token", "username={user}"].map(str::to_owned));
        words.push(format!("lifespan={}", lifespan.as_secs()));
        words
    }

    /// Words to put before a program of this Slurm's, none where it is this machine's own.
    pub fn prefix(&self) -> Vec<String> {
        self.within(None)
    }

    fn within(&self, account: Option<Account>) -> Vec<String> {
        let Release::Within(root) = &self.release else { return Vec::new() };
        let (uid, gid) = account.map_or((0, 0), |Account { uid, gid }| (uid, gid));
        let text = |path: &Path| path.display().to_string();
        let mut words = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", ENTER, "sh"]
            .map(str::to_owned)
            .to_vec();
        words.extend([text(root), text(self.home.path()), uid.to_string(), gid.to_string()]);
        words.push(text(&std::env::temp_dir()));
        words
    }

    /// Whether it follows processes that leave their parents.
    pub fn ends_strays(&self) -> bool {
        follows_strays()
    }

    /// Runs a command of Slurm's as its administrator; what it printed.
    pub async fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.slurms(program, "root")?, arguments).await
    }

    /// `kill -9` of slurmctld: what it had not saved is lost.
    pub fn kill_slurmctld(&mut self) -> Result<()> {
        self.slurmctld.take().context("slurmctld is stopped already")?.kill()
    }

    /// Stops slurmctld in order, all it knows saved.
    pub async fn stop_slurmctld(&mut self) -> Result<()> {
        let mut slurmctld = self.slurmctld.take().context("slurmctld is stopped already")?;
        slurmctld.stop(Signal::TERM, START).await.map(drop)
    }

    /// What an operator does about a node that Slurm took out of service by itself; answers why it was.
    pub async fn resume_node(&self) -> Result<Option<String>> {
        let why = self.command("sinfo", &["-h", "-R", "-o", "%E"]).await?;
        if why.trim().is_empty() {
            return Ok(None);
        }
        let node = format!("NodeName={}", self.node());
        self.command("scontrol", &["update", &node, "State=RESUME"]).await?;
        Ok(Some(why.trim().to_owned()))
    }

    /// Kills slurmrestd and starts it again, where it was.
    pub async fn restart_slurmrestd(&mut self) -> Result<()> {
        self.restd.take().context("slurmrestd is stopped already")?.kill()?;
        self.start_restd().await
    }

    /// Starts slurmctld, again on the same state, and returns when it answers.
    pub async fn start_slurmctld(&mut self) -> Result<()> {
        ensure!(self.slurmctld.is_none(), "slurmctld runs already");
        let mut command = self.slurms("slurmctld", "slurm")?;
        command.arg("-D");
        let slurmctld = self.spawn_slurms("slurmctld", &command, "slurm")?;
        self.slurmctld = Some(slurmctld);
        self.answers("slurmctld answers", "scontrol", &["ping"], "is UP").await
    }

    async fn answers(&self, what: &str, program: &str, arguments: &[&str], word: &str) -> Result<()> {
        until(what, START, async || {
            let said = self.command(program, arguments).await?;
            ensure!(said.contains(word), "{said}");
            Ok(())
        })
        .await
        .with_context(|| self.logs())
    }

    /// The ends of every daemon's log.
    fn logs(&self) -> String {
        let daemons = [
            &self.munged,
            &self.mariadb,
            &self.slurmdbd,
            &self.slurmctld,
            &self.slurmd,
            &self.restd,
            &self.socket_restd,
        ];
        let tails: Vec<String> = daemons.into_iter().flatten().map(Managed::log_tail).collect();
        tails.join("\n")
    }

    /// A second slurmrestd, of the jobs' account, on a socket: it knows who asks by the kernel's word. What a URL calls it.
    pub async fn start_socket(&mut self) -> Result<String> {
        give(&self.home.file("rest"), JOBS)?;
        let url = format!("unix:{}", self.home.file("rest/socket").display());
        let mut command = self.slurms("slurmrestd", JOBS)?;
        command.args(["-a", "rest_auth/local", "-s", self.plugins(Accounting::None), &url]);
        self.socket_restd = Some(self.spawn_slurms("slurmrestd-socket", &command, JOBS)?);
        let socket = self.home.file("rest/socket");
        until("slurmrestd has made its socket", ANSWER, async || {
            std::os::unix::net::UnixStream::connect(&socket)?;
            Ok(())
        })
        .await
        .with_context(|| self.logs())?;
        Ok(url)
    }

    /// From now on the jobs' account may have so many jobs submitted. Needs slurmdbd.
    pub async fn limit_submits(&mut self, most: u32) -> Result<()> {
        let account = ["-i", "add", "account", "jobgate"];
        self.command("sacctmgr", &account).await?;
        let (name, most) = (format!("name={JOBS}"), format!("MaxSubmitJobs={most}"));
        let user = ["-i", "add", "user", &name, "account=jobgate", &most];
        self.command("sacctmgr", &user).await?;
        self.stop_slurmctld().await?;
        let mut conf = fs::read_to_string(self.conf())?;
        conf.push_str("AccountingStorageEnforce=limits\n");
        self.home.write("slurm.conf", &conf)?;
        self.start_slurmctld().await
    }

    async fn start_munged(&mut self) -> Result<()> {
        let file = |name: &str| self.home.file("munge").join(name).display().to_string();
        let mut command = self.home.command(program("munged"));
        command.args(["--foreground", "--num-threads=4"]);
        for (option, name) in [
            ("key-file", "key"),
            ("socket", "sock"),
            ("pid-file", "pid"),
            ("seed-file", "seed"),
            ("log-file", "log"),
        ] {
            command.arg(format!("--{option}={}", file(name)));
        }
        let munged = self.spawn("munged", &command, "munge", LastWord::Terminate)?;
        self.munged = Some(munged);
        let socket = self.home.file("munge/sock");
        until("munged listens", START, async || {
            ensure!(socket.exists(), "no socket; its log ends:\n{}", self.logs());
            Ok(())
        })
        .await
    }

    async fn start_accounting(&mut self) -> Result<()> {
        let data = self.home.file("my/data").display().to_string();
        let socket = self.home.file("my/sock").display().to_string();
        let mut install = self.home.command("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        install.arg(format!("--datadir={data}"));
        // A MariaDB that begins removes temporary tables of all whose directory for such it shares.
        let temporary = self.home.file("my");
        install.env("TMPDIR", &temporary);
        let mut install = guarded(&install, account("mysql")?, LastWord::Kill);
        let made = tokio::task::spawn_blocking(move || install.output()).await?;
        let made = made.context("MariaDB cannot be run: deploy/install-services slurm installs it")?;
        ensure!(made.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&made.stderr));
        let mut command = self.home.command(program("mariadbd"));
        command.env("TMPDIR", &temporary);
        command.args(["--no-defaults", "--bind-address=127.0.0.1", "--innodb-lock-wait-timeout=900"]);
        command.args([format!("--datadir={data}"), format!("--socket={socket}")]);
        command.args([format!("--port={}", self.ports.mariadb), "--innodb-buffer-pool-size=64M".to_owned()]);
        self.mariadb = Some(self.spawn("mariadb", &command, "mysql", LastWord::Kill)?);
        let sql = "CREATE DATABASE slurm_acct; CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
             CREATE USER slurm@localhost IDENTIFIED BY 'slurm';
             GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1'; GRANT ALL ON slurm_acct.* TO slurm@localhost;";
        let socket = format!("--socket={socket}");
        let ping = ["--no-defaults", socket.as_str(), "-uroot", "-e", "SELECT 'up'"];
        let answers = async || run(self.home.command("mariadb"), &ping).await.map(drop);
        until("MariaDB answers", START, answers).await.with_context(|| self.logs())?;
        run(self.home.command("mariadb"), &["--no-defaults", &socket, "-uroot", "-e", sql]).await?;
        self.home.write("slurmdbd.conf", &self.dbd_configuration())?;
        let conf = self.home.file("slurmdbd.conf");
        hand_to(&conf, "slurm")?;
        fs::set_permissions(&conf, Permissions::from_mode(0o600))?;
        let mut command = self.slurms("slurmdbd", "slurm")?;
        command.arg("-D");
        self.slurmdbd = Some(self.spawn_slurms("slurmdbd", &command, "slurm")?);
        let port = self.ports.dbd;
        until("slurmdbd listens", START, async || listens(port)).await.with_context(|| self.logs())?;
        self.command("sacctmgr", &["-i", "add", "cluster", "jobgate"]).await.map(drop)
    }

    async fn start_slurmd(&mut self) -> Result<()> {
        let mut command = self.slurms("slurmd", "root")?;
        command.args(["-D", "-N", &self.node()]);
        self.slurmd = Some(self.spawn_slurms("slurmd", &command, "root")?);
        self.answers("the node is idle", "sinfo", &["-h", "-o", "%T"], "idle").await
    }

    async fn start_restd(&mut self) -> Result<()> {
        let mut command = self.slurms("slurmrestd", REST)?;
        command.args([
            "-a",
            "rest_auth/jwt",
            "-s",
            self.plugins(self.accounting),
            &format!("127.0.0.1:{}", self.ports.rest),
        ]);
        command.env("SLURM_JWT", "daemon");
        self.restd = Some(self.spawn_slurms("slurmrestd", &command, REST)?);
        let port = self.ports.rest;
        until("slurmrestd listens", ANSWER, async || listens(port)).await.with_context(|| self.logs())
    }

    fn spawn(&self, name: &str, command: &Command, as_who: &str, last_word: LastWord) -> Result<Managed> {
        let log = self.home.file(&format!("{name}.log"));
        Managed::spawn(name, command, account(as_who)?, &log, last_word)
            .with_context(|| format!("{name} is missing: deploy/install-services slurm installs it"))
    }

    /// A daemon of this Slurm's; what it enters first, if there is such, is what changes the account.
    fn spawn_slurms(&self, name: &str, command: &Command, as_who: &str) -> Result<Managed> {
        let as_who = if self.release == Release::Installed { as_who } else { "root" };
        self.spawn(name, command, as_who, LastWord::Kill)
    }

    /// A program of this Slurm's, which is to run as an account.
    fn slurms(&self, name: &str, as_who: &str) -> Result<Command> {
        let words = self.within(account(as_who)?);
        let mut command = match words.split_first() {
            None => self.home.command(program(name)),
            Some((enter, words)) => {
                let mut command = self.home.command(enter);
                command.args(words).arg(name);
                command
            }
        };
        // A token in the environment would be taken for the way to speak to every daemon.
        command.env("SLURM_CONF", self.home.file("slurm.conf")).env_remove("SLURM_JWT");
        // Not everywhere may a process leave what it shares with nobody.
        command.env("SLURMRESTD_SECURITY", "disable_unshare_sysv,disable_unshare_files");
        Ok(command)
    }

    /// What slurmrestd is to serve.
    fn plugins(&self, accounting: Accounting) -> &'static str {
        match (&self.release, accounting) {
            (Release::Installed, Accounting::None) => "openapi/v0.0.38",
            (Release::Installed, Accounting::Slurmdbd) => "openapi/v0.0.38,openapi/dbv0.0.38",
            (Release::Within(_), Accounting::None) => "openapi/slurmctld",
            (Release::Within(_), Accounting::Slurmdbd) => "openapi/slurmctld,openapi/slurmdbd",
        }
    }

    /// A name no other cluster on this host has: the kernel's groups of its jobs carry it.
    fn node(&self) -> String {
        format!("jg{}", self.ports.d)
    }

    fn secret(&self, name: &str, owner: &str, bytes: usize) -> Result<()> {
        let secret: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
        let path = self.home.file(name);
        fs::write(&path, secret)?;
        fs::set_permissions(&path, Permissions::from_mode(0o400))?;
        hand_to(&path, owner)
    }

    fn configuration(&self, min_job_age: Duration) -> Result<String> {
        let home = self.home.path().display();
        let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let host = host.trim().split('.').next().unwrap_or_default();
        let Ports { ctld, d, dbd, .. } = &self.ports;
        let accounting = match self.accounting {
            Accounting::None => "AccountingStorageType=accounting_storage/none".to_owned(),
            // The connection to slurmdbd ignores AuthInfo, and takes the socket from here.
            Accounting::Slurmdbd => format!(
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n\
                 AccountingStoragePort={dbd}\nAccountingStoragePass={home}/munge/sock"
            ),
        };
        let proctrack = if follows_strays() { "cgroup" } else { "linuxproc" };
        // What does not say what it needs gets little, so that many run beside each other.
        let (task, select) = if Self::limits_memory() {
            ("cgroup", "CR_Core_Memory\nDefMemPerNode=40")
        } else {
            ("none", "CR_Core")
        };
        let (node, age) = (self.node(), min_job_age.as_secs());
        // More processors than there are: jobs of tests wait more than they compute.
        Ok(format!(
            "ClusterName=jobgate
SlurmctldHost={host}(127.0.0.1)
SlurmUser=slurm
SlurmctldPort={ctld}
SlurmdPort={d}
AuthType=auth/munge
AuthInfo=socket={home}/munge/sock
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={home}/state/jwt.key
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/state/slurmctld.pid
SlurmdPidFile={home}/spool/slurmd.pid
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/{task}
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters={select}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=50000,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=0
MinJobAge={age}
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
{accounting}
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=40000 State=UNKNOWN
PartitionName=debug Nodes={node} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"
        ))
    }

    fn dbd_configuration(&self) -> String {
        let home = self.home.path().display();
        let Ports { dbd, mariadb, .. } = &self.ports;
        format!(
            "AuthType=auth/munge
AuthInfo=socket={home}/munge/sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={home}/state/jwt.key
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=slurm
PidFile={home}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"
        )
    }

    /// What runs for a job of this cluster: Slurm's own supervisors, and the processes of jobs.
    fn processes(&self) -> Vec<Pid> {
        let marks = [
            format!("SLURM_CONF={}", self.home.file("slurm.conf").display()),
            format!("SLURMD_NODENAME={}", self.node()),
        ];
        // 24.11's supervisors have no environment to be known by, but stay in the folder.
        let home = self.home.path().as_os_str().as_bytes();
        let of_cluster = |pid: &u32| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            if cwd.as_os_str().as_bytes().windows(home.len()).any(|part| part == home) {
                return true;
            }
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|byte| *byte == 0).any(|v| marks.iter().any(|mark| v == mark.as_bytes()))
        };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(of_cluster).filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
    }
}

impl Drop for Slurm {
    /// Jobs do not end with the daemons, so they are ended here, and the kernel's groups of theirs removed.
    fn drop(&mut self) {
        drop((
            self.restd.take(),
            self.socket_restd.take(),
            self.slurmd.take(),
            self.slurmctld.take(),
            self.slurmdbd.take(),
            self.mariadb.take(),
            self.munged.take(),
        ));
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                kill_process(pid, Signal::KILL).ok();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for controller in [FREEZER, MEMORY] {
            let group = Path::new(controller).join(format!("slurm_{}", self.node()));
            // The kernel lets go of those that were in it a moment after their end.
            for _ in 0..100 {
                remove_groups(&group);
                if !group.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// What a command that is to succeed printed.
async fn run(mut command: Command, arguments: &[&str]) -> Result<String> {
    command.args(arguments);
    let program = command.get_program().to_owned();
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{} {arguments:?}: {said}", program.display());
    Ok(String::from_utf8(done.stdout)?)
}

/// A kernel's group can be removed once those in it are.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    fs::remove_dir(group).ok();
}

fn listens(port: u16) -> Result<()> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    Ok(())
}

fn follows_strays() -> bool {
    Path::new(FREEZER).join("tasks").is_file()
}

fn account(name: &str) -> Result<Option<Account>> {
    if name == "root" { Ok(None) } else { Account::instead_of_root(name) }
}

fn give(folder: &Path, owner: &str) -> Result<()> {
    fs::create_dir(folder)?;
    hand_to(folder, owner)
}

fn hand_to(path: &Path, owner: &str) -> Result<()> {
    if let Some(Account { uid, gid }) = account(owner)? {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Daemons are not in everybody's search path.
fn program(name: &str) -> PathBuf {
    let daemon = Path::new("/usr/sbin").join(name);
    if daemon.is_file() { daemon } else { PathBuf::from(name) }
}
