//! Grid Engine: a private cell with one host of eight slots, for the engine that drives schedulers by their command lines.
//!
//! As root only, which it must be to run jobs as their owners; its daemons run as Debian's `sgeadmin`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Home;
use crate::ports;
use crate::process::{Account, LastWord, Managed, guarded};
use crate::wait::until;

const START: Duration = Duration::from_secs(30);
/// What jobs that are told to end may take.
const JOBS_END: Duration = Duration::from_secs(20);
/// Debian's programs themselves; those in the search path are wrappers that choose a cell.
const PROGRAMS: &str = "/usr/lib/gridengine";
const SHARE: &str = "/usr/share/gridengine";

/// A private Grid Engine. Ends with this value, the execution daemon first.
#[derive(Debug)]
pub struct GridEngine {
    execd: Option<Managed>,
    qmaster: Option<Managed>,
    home: Home,
    ports: [u16; 2],
}

impl GridEngine {
    /// A new cell without jobs.
    pub async fn start() -> Result<Self> {
        ensure!(
            rustix::process::getuid().is_root(),
            "a private Grid Engine needs root: it runs jobs as their owners"
        );
        ensure!(
            Path::new(PROGRAMS).join("sge_qmaster").exists(),
            "Grid Engine is not here: `deploy/install-services gridengine` installs it"
        );
        let home = Home::create("sgeadmin")?;
        let ports = [ports::free()?, ports::free()?];
        let mut cell = Self { execd: None, qmaster: None, home, ports };
        cell.make().context("make a cell of Grid Engine")?;
        let mut qmaster = cell.daemon("sge_qmaster")?;
        qmaster.ready(START, async || cell.program("qconf", &["-sconf"]).map(drop)).await?;
        cell.qmaster = Some(qmaster);
        cell.furnish().context("furnish the cell")?;
        let mut execd = cell.daemon("sge_execd")?;
        let up = async || {
            let queues = cell.program("qstat", &["-f"])?;
            // An unreachable host shows `au`, one that has not reported a load of `-NA-`.
            let line = queues.lines().find(|line| line.starts_with("all.q")).context("no queue")?;
            ensure!(line.split_whitespace().count() == 5 && !line.contains("-NA-"), "{line}");
            Ok(())
        };
        execd.ready(START, up).await?;
        cell.execd = Some(execd);
        Ok(cell)
    }

    /// The variables that make Grid Engine's commands mean this cell.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("SGE_ROOT", self.home.path().to_string_lossy().into_owned()),
            ("SGE_CELL", "default".to_owned()),
            ("SGE_QMASTER_PORT", self.ports[0].to_string()),
            ("SGE_EXECD_PORT", self.ports[1].to_string()),
        ]
    }

    /// A directory of an ordinary account in the server's own.
    pub fn folder(&self, name: &str, account: Account) -> Result<std::path::PathBuf> {
        let folder = self.home.file(name);
        fs::create_dir(&folder)?;
        std::os::unix::fs::chown(&folder, Some(account.uid), Some(account.gid))?;
        Ok(folder)
    }

    /// Deletes every job and waits until none is left; what stood in the queue.
    pub async fn end_all_jobs(&self) -> Result<String> {
        let left = self.program("qstat", &["-u", "*"])?;
        if !left.is_empty() {
            self.program("qdel", &["-u", "*"])?;
        }
        until("all jobs end", JOBS_END, async || {
            let left = self.program("qstat", &["-u", "*"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .await?;
        Ok(left)
    }

    /// What one of Grid Engine's programs prints, run by a manager of the cell.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.home.command(Path::new(PROGRAMS).join(name));
        let out = command.args(arguments).envs(self.environment()).output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(out.status.success(), "{name} {arguments:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
        Ok(said)
    }

    fn daemon(&self, name: &str) -> Result<Managed> {
        let mut command: Command = self.home.command(Path::new(PROGRAMS).join(name));
        // In the foreground.
        command.envs(self.environment()).env("SGE_ND", "1");
        // As root: it changes to its administrator by itself.
        Managed::spawn(name, &command, None, &self.home.file(&format!("{name}.log")), LastWord::Terminate)
    }

    /// The cell on disk, as Debian's `init_cluster` makes it, with plain files for a spool.
    fn make(&self) -> Result<()> {
        let root = self.home.path();
        for name in ["bin", "lib", "utilbin", "util"] {
            std::os::unix::fs::symlink(Path::new("/var/lib/gridengine").join(name), self.home.file(name))?;
        }
        for name in [
            "default",
            "default/common",
            "spool",
            "spool/qmaster",
            "spool/qmaster/job_scripts",
            "spool/execd",
        ] {
            fs::create_dir(self.home.file(name))?;
            self.home.hand_over(&self.home.file(name))?;
        }
        let root = root.display();
        let spool = format!("{root}/default/common;{root}/spool/qmaster");
        let bootstrap = format!(
            "admin_user sgeadmin\ndefault_domain none\nignore_fqdn true\nspooling_method classic\nspooling_lib libspoolc\n\
             spooling_params {spool}\nbinary_path {PROGRAMS}\nqmaster_spool_dir {root}/spool/qmaster\nsecurity_mode none\n\
             listener_threads 2\nworker_threads 2\nscheduler_threads 1\n"
        );
        self.home.write("default/common/bootstrap", &bootstrap)?;
        self.home.write("default/common/act_qmaster", "localhost\n")?;
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.home.write("default/common/host_aliases", &format!("localhost {hostname}\n"))?;
        let settings = [
            ("execd_spool_dir", format!("{root}/spool/execd")),
            ("min_uid", "1".into()),
            ("min_gid", "1".into()),
            ("gid_range", "20000-20500".into()),
            // What a job leaves is found by its group, and nothing of the daemon's environment reaches it.
            ("execd_params", "ENABLE_ADDGRP_KILL=TRUE,INHERIT_ENV=FALSE".into()),
            ("reporting_params", "accounting=true reporting=false flush_time=00:00:15 accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00".into()),
        ];
        self.home.write(
            "configuration",
            &changed(&fs::read_to_string(format!("{SHARE}/default-configuration"))?, &settings),
        )?;
        let configuration = self.home.file("configuration").to_string_lossy().into_owned();
        let resources = |name: &str| format!("{SHARE}/util/resources/{name}");
        for (program, arguments) in [
            ("spoolinit", vec!["classic", "libspoolc", &spool, "init"]),
            ("spooldefaults", vec!["configuration", &configuration]),
            ("spooldefaults", vec!["complexes", &resources("centry")]),
            ("spooldefaults", vec!["usersets", &resources("usersets")]),
            ("spooldefaults", vec!["adminhosts", "localhost"]),
            ("spooldefaults", vec!["managers", "sgeadmin", "root"]),
        ] {
            let mut command = self.home.command(Path::new(PROGRAMS).join(program));
            command.args(&arguments).envs(self.environment());
            let out = guarded(&command, self.home.account, LastWord::Kill).output()?;
            ensure!(
                out.status.success(),
                "{program} {arguments:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(())
    }

    /// A host, a queue, a parallel environment, and a scheduler in a hurry.
    fn furnish(&self) -> Result<()> {
        self.home.write(
            "host",
            "hostname localhost\nload_scaling NONE\ncomplex_values NONE\nuser_lists NONE\nxuser_lists NONE\nprojects NONE\n\
             xprojects NONE\nusage_scaling NONE\nreport_variables NONE\n",
        )?;
        self.home.write(
            "smp",
            "pe_name smp\nslots 999\nuser_lists NONE\nxuser_lists NONE\nstart_proc_args NONE\nstop_proc_args NONE\n\
             allocation_rule $pe_slots\ncontrol_slaves FALSE\njob_is_first_task TRUE\nurgency_slots min\n\
             accounting_summary FALSE\nqsort_args NONE\n",
        )?;
        let queue = [
            ("qname", "all.q".to_owned()),
            ("hostlist", "localhost".into()),
            ("slots", "8".into()),
            ("pe_list", "smp".into()),
            ("load_thresholds", "NONE".into()),
        ];
        self.home.write("queue", &changed(&self.program("qconf", &["-sq"])?, &queue))?;
        let scheduler = ["schedule_interval", "flush_submit_sec", "flush_finish_sec"]
            .map(|name| (name, if name == "schedule_interval" { "0:0:1" } else { "1" }.to_owned()));
        self.home.write("scheduler", &changed(&self.program("qconf", &["-ssconf"])?, &scheduler))?;
        self.program("qconf", &["-as", "localhost"])?;
        for (flag, file) in [("-Ae", "host"), ("-Ap", "smp"), ("-Aq", "queue"), ("-Msconf", "scheduler")] {
            self.program("qconf", &[flag, &self.home.file(file).to_string_lossy()])?;
        }
        Ok(())
    }
}

/// A file of settings, a name and a value a line, with other values; one it does not have comes last.
fn changed(text: &str, values: &[(&str, String)]) -> String {
    // A value may go on in the next line.
    let text = text.replace("\\\n", " ");
    let name_of = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let known = |line: &str| name_of(line).is_some_and(|name| values.iter().any(|(known, _)| *known == name));
    let kept = text.lines().filter(|line| !known(line)).map(str::to_owned);
    let set = values.iter().map(|(name, value)| format!("{name} {value}"));
    kept.chain(set).map(|line| line + "\n").collect()
}
