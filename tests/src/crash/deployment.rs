//! One deployment the matrix crashes again and again: its processes, its managers, and what becomes of its jobs.

use super::{
    claimant::Service,
    orders::Orders,
    plan::{Form, Manager},
};
use crate::{
    gateway::{Client, Role, Site},
    proxy::{Link, Mode, Protocol},
    services::{Database, Vhost},
    wait::until,
};
use anyhow::{Context as _, Result, bail, ensure};
use jobgate_shared::{
    domain::{JobId, SubmissionTag},
    failpoint,
    supervise::Tasks,
};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    io::{ErrorKind, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};
use tokio_util::sync::DropGuard;

/// How long a process that was ended may be seen to run on.
const ENDS: Duration = Duration::from_secs(20);
/// How long one that has said that it aborts may need for it.
const DIES: Duration = Duration::from_millis(500);
/// The clusters jobs are posted to: of jobs that end well, that fail, that go on until they are cancelled.
pub(super) const CLUSTERS: [&str; 3] = ["quick", "failing", "long"];
/// Threads of a process, some of which an order may put to sleep.
const THREADS: &str = "4";

/// The processes of one deployment.
#[derive(Debug)]
pub(super) struct Deployment {
    pub(super) form: Form,
    pub(super) manager: Manager,
    pub(super) orders: Orders,
    roles: BTreeMap<&'static str, Role>,
    client: Option<Client>,
    /// The ways of its roles to the broker, where that is a process of its own.
    ways: BTreeMap<&'static str, Link>,
    /// What works off its clusters, where no worker does.
    service: Option<Service>,
    /// Ends the links and the service.
    _end: DropGuard,
    site: Site,
    /// Outlive everything that is connected to them.
    _servers: Option<(Database, Vhost)>,
}

impl Deployment {
    /// Starts every role.
    pub(super) async fn start(form: Form, manager: Manager) -> Result<Self> {
        let (tasks, mut ways) = (Tasks::default(), BTreeMap::new());
        let end = tasks.shutdown().clone().drop_guard();
        let (mut site, servers) = match form {
            Form::Sqlite => (Site::embedded("")?, None),
            Form::Postgres => {
                let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
                let mut site = Site::distributed("", database.url(), vhost.url())?;
                for role in ["api", "worker"] {
                    let (link, url) =
                        Link::to(vhost.url(), Protocol::Opaque, 0, Arc::default(), &tasks).await?;
                    site.set_for(role, "JOBGATE_BROKER_URL", url);
                    ways.insert(role, link);
                }
                (site, Some((database, vhost)))
            }
        };
        site.configure(&configuration(&site, manager))?;
        let orders = Orders::new(site.file("orders"))?;
        site.set(failpoint::VARIABLE, orders.path().to_string_lossy());
        site.set("TOKIO_WORKER_THREADS", THREADS);
        if form == Form::Postgres {
            site.run(&["migrate"])?;
        }
        let service = match manager {
            Manager::Claimant => {
                let states = CLUSTERS.map(|cluster| (cluster, site.file(&format!("state-{cluster}"))));
                Some(Service::begin(states, &tasks)?)
            }
            Manager::Local
            | Manager::TwoPhase
            | Manager::UniqueName
            | Manager::Fenced
            | Manager::AtMostOnce => None,
        };
        let mut deployment = Self {
            form,
            manager,
            orders,
            roles: BTreeMap::new(),
            client: None,
            ways,
            service,
            _end: end,
            site,
            _servers: servers,
        };
        deployment.revive().await?;
        Ok(deployment)
    }

    fn names(&self) -> &'static [&'static str] {
        match self.form {
            Form::Sqlite => &["serve"],
            Form::Postgres => &["api", "recorder", "worker"],
        }
    }

    fn worker_name(&self) -> &'static str {
        match self.form {
            Form::Sqlite => "serve",
            Form::Postgres => "worker",
        }
    }

    /// The role that claims and submits.
    pub(super) fn worker(&mut self) -> Result<&mut Role> {
        let name = self.worker_name();
        self.roles.get_mut(name).with_context(|| format!("there is no {name}"))
    }

    /// Speaks to the API as it runs now.
    pub(super) fn client(&self) -> Result<Client> {
        self.client.clone().context("there is no API")
    }

    /// The service outside.
    pub(super) fn service(&self) -> Result<&Service> {
        self.service.as_ref().context("workers have the clusters")
    }

    /// The broker is away for this role, or there again.
    pub(super) fn cut_off(&self, role: &str, away: bool) -> Result<()> {
        let link = self.ways.get(role).with_context(|| format!("{role} has no broker to lose"))?;
        link.set(if away { Mode::Refuse } else { Mode::Pass });
        Ok(())
    }

    /// Starts every role that does not run, and lets all reach everything.
    pub(super) async fn revive(&mut self) -> Result<()> {
        for link in self.ways.values() {
            link.set(Mode::Pass);
        }
        for &name in self.names() {
            if let Some(role) = self.roles.get_mut(name)
                && role.process.is_running()?
            {
                continue;
            }
            self.roles.remove(name);
            let role = self.site.start(name).await?;
            if matches!(name, "serve" | "api") {
                let client = self.site.client(&role)?;
                if let Some(service) = &self.service {
                    service.reaches(client.clone());
                }
                self.client = Some(client);
            }
            self.roles.insert(name, role);
        }
        Ok(())
    }

    /// Whoever passed the point is gone, and nothing else ended it. One that did not get as far as being ready is gone
    /// already.
    pub(super) async fn see_abort(&mut self) -> Result<()> {
        let whole = self.roles.len() == self.names().len();
        let roles = &mut self.roles;
        let ended =
            until("the role that passed the point ends", if whole { ENDS } else { DIES }, async || {
                for (name, role) in &mut *roles {
                    if !role.process.is_running()? {
                        return Ok(*name);
                    }
                }
                bail!("all of them run")
            })
            .await;
        let name = match ended {
            Err(_) if !whole => return Ok(()),
            ended => ended?,
        };
        let role = self.roles.get_mut(name).context("it was there")?;
        let status = role.process.exited(Duration::ZERO).await?;
        ensure!(status.signal() == Some(Signal::ABORT.as_raw()), "{name} ended otherwise: {status}");
        Ok(())
    }

    /// SIGTERM to the worker, and its end, whatever that is.
    pub(super) async fn drain_worker(&mut self) -> Result<()> {
        self.worker()?.process.stop(Signal::TERM, ENDS).await?;
        Ok(())
    }

    /// Everything ends in good order.
    pub(super) async fn end(&mut self) -> Result<()> {
        for &name in self.names().iter().rev() {
            let role = self.roles.get_mut(name).with_context(|| format!("there is no {name}"))?;
            role.drain(ENDS).await?;
        }
        Ok(())
    }

    /// The embedded store's file.
    pub(super) fn store_file(&self) -> PathBuf {
        self.site.data_dir().join("jobgate.db")
    }

    /// Where local jobs write down that they begin.
    pub(super) fn ledger(&self) -> PathBuf {
        self.site.file("ledger")
    }

    fn state(&self, cluster: &str) -> PathBuf {
        self.site.file(&format!("state-{cluster}"))
    }

    fn spool(&self, cluster: &str) -> PathBuf {
        self.site.data_dir().join("spool").join(cluster)
    }

    /// How often each attempt has begun.
    pub(super) fn begun(&self) -> Result<BTreeMap<SubmissionTag, usize>> {
        let files = match self.manager {
            Manager::Local => vec![self.ledger()],
            Manager::TwoPhase
            | Manager::UniqueName
            | Manager::Fenced
            | Manager::AtMostOnce
            | Manager::Claimant => CLUSTERS.map(|cluster| self.state(cluster)).into(),
        };
        let mut begun = BTreeMap::new();
        for file in files {
            let text = match fs::read_to_string(&file) {
                // No local job has begun yet.
                Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
                text => text.with_context(|| file.display().to_string())?,
            };
            for line in text.lines() {
                let first = line.split(' ').next().unwrap_or_default();
                // Lines of a state that are no beginnings start with a word.
                if let Ok(tag) = first.parse::<SubmissionTag>() {
                    *begun.entry(tag).or_default() += 1;
                }
            }
        }
        Ok(begun)
    }

    /// Puts a submission into the manager that no row knows, as old as can be.
    pub(super) fn leave_behind(&self) -> Result<()> {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        if self.manager != Manager::Local {
            let state = File::options().append(true).open(self.state("quick"))?;
            // As the workers do: nobody else writes meanwhile.
            state.lock()?;
            (&state).write_all(format!("created {tag} left-behind 0 -\n").as_bytes())?;
            return Ok(());
        }
        let attempt = self.spool("quick").join(tag.to_string());
        let inner = attempt.join("0123456789abcdef");
        // Made aside and named at once, as the engine does: an attempt without its inner directory is debris.
        let aside = self.spool("quick").join("new").join(tag.to_string());
        fs::create_dir_all(aside.join("0123456789abcdef"))?;
        fs::rename(&aside, &attempt)?;
        Ok(File::open(inner)?.set_times(FileTimes::new().set_modified(UNIX_EPOCH))?)
    }

    /// Submissions nobody will act on any more: made and neither begun nor removed, or, where the manager's promise is that
    /// each attempt has one only, begun and not ended although every job has.
    pub(super) fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for cluster in CLUSTERS {
            if self.manager == Manager::Local {
                for entry in fs::read_dir(self.spool(cluster))? {
                    let name = entry?.file_name().to_string_lossy().into_owned();
                    if name.parse::<SubmissionTag>().is_ok() {
                        left.push(name);
                    }
                }
                continue;
            }
            // What would run for an hour has not ended by itself.
            let runs_on = cluster == "long"
                && match self.manager {
                    Manager::TwoPhase | Manager::UniqueName | Manager::Fenced | Manager::Claimant => true,
                    Manager::Local | Manager::AtMostOnce => false,
                };
            let mut there = BTreeMap::new();
            for line in fs::read_to_string(self.state(cluster))?.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words.as_slice() {
                    ["created", tag, id, ..] => drop(there.insert((*id).to_owned(), (*tag).to_owned())),
                    ["removed" | "ended", _, id, ..] => drop(there.remove(*id)),
                    [_, id, _, _] if !runs_on => drop(there.remove(*id)),
                    _ => {}
                }
            }
            left.extend(there.into_iter().map(|(id, tag)| format!("{tag} {id}")));
        }
        Ok(left)
    }

    /// What its processes said last.
    pub(super) fn last_words(&self) -> String {
        let tail = |(name, role): (&&str, &Role)| format!("--- {name}\n{}\n", role.process.log_tail());
        self.roles.iter().map(tail).collect()
    }
}

/// Short leases and short pauses: what is waited for after a crash, everywhere.
fn configuration(site: &Site, manager: Manager) -> String {
    let mut text = r#"
[worker]
lease = "3s"
heartbeat = "500ms"
drain = "3s"
broker_patience = "1s"
ship_logs = "50ms"
sweep = "1s"
sweep_older_than = "10s"

[dispatcher]
hint_ttl = "1s"

[store]
write_connections = 3
read_connections = 3
"#
    .to_owned();
    for cluster in CLUSTERS {
        let engine = match manager {
            Manager::Local => "engine = \"local\"\nkill_grace = \"2s\"".to_owned(),
            Manager::Claimant => "engine = \"external\"".to_owned(),
            Manager::TwoPhase | Manager::UniqueName | Manager::Fenced | Manager::AtMostOnce => {
                let (run_for, failure_ratio) = match cluster {
                    "long" => ("1h", "0.0"),
                    "failing" => ("0s", "1.0"),
                    _ => ("0s", "0.0"),
                };
                let (mode, state) = (manager.name(), site.file(&format!("state-{cluster}")));
                format!(
                    "engine = \"noop\"\nmode = \"{mode}\"\nstate = \"{}\"\nrun_for = \"{run_for}\"\n\
                     failure_ratio = {failure_ratio}\npoll_interval = \"50ms\"",
                    state.display()
                )
            }
        };
        let regulator = "regulator = { kind = \"fixed\", max_in_flight = 64 }";
        let section = ["", &format!("[clusters.{cluster}]"), "lost_after = \"5s\"", regulator, &engine, ""];
        text += &section.join("\n");
    }
    text
}
