//! What stands around the engine under test: a cluster many cases share, and a folder per case that jobs can write to.

use crate::Tried;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{Method, header::HOST},
};
use futures::stream;
use jobgate_shared::supervise::Tasks;
use jobgate_tests::services::{Accounting, Release, Slurm};
use jobgate_worker::{
    engine::{Capabilities, Engine, ToCreate},
    engines::{
        EngineSettings as _, build,
        conformance::{self, Rig, Trouble},
        slurm::SlurmConfig,
    },
};
use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tempfile::TempDir;

/// A cluster that is started when it is first needed.
pub(crate) struct Cluster {
    release: Release,
    pub(crate) accounting: Accounting,
    slurm: Mutex<Option<Arc<Slurm>>>,
}

impl Cluster {
    pub(crate) fn new(release: Release, accounting: Accounting) -> Self {
        Self { release, accounting, slurm: Mutex::new(None) }
    }

    pub(crate) fn slurm(&self) -> Arc<Slurm> {
        let mut slurm = self.slurm.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let begun = Slurm::start(self.release.clone(), self.accounting, Duration::from_mins(10));
            Arc::new(crate::block_on(begun).expect("a Slurm"))
        };
        slurm.get_or_insert_with(start).clone()
    }
}

/// How long a call may take: a third of the usual lease.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_millis(3_333);

/// Stands before a slurmrestd: passes on what is asked, and breaks off the answer of whatever does something. Its URL.
fn mute(behind: String) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let pass_on = move |request: Request| {
        let (client, behind) = (client.clone(), behind.clone());
        async move {
            let (mut parts, body) = request.into_parts();
            parts.headers.remove(HOST);
            let looks = parts.method == Method::GET;
            let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
            let url = format!("{behind}{}", parts.uri);
            let asked = client.request(parts.method, url).headers(parts.headers).body(body).send().await;
            let answer = asked.expect("slurmrestd");
            let (status, body) = (answer.status(), answer.bytes().await.expect("a body"));
            let cut = || stream::once(async { Err::<Bytes, _>(io::Error::other("lost")) });
            (status, if looks { Body::from(body) } else { Body::from_stream(cut()) })
        }
    };
    Tasks::default().spawn("mute", async move {
        axum::serve(listener, Router::new().fallback(pass_on)).await.expect("a server");
    });
    url
}

/// A folder every account may write to.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("jobgate-test-").tempdir().expect("a folder");
    // After the umask had its say.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("its mode");
    folder
}

/// One case's engine, folder and cluster.
pub(crate) struct SlurmRig {
    folder: TempDir,
    pub(crate) config: SlurmConfig,
    ends_strays: bool,
}

impl SlurmRig {
    /// What engines of such settings declare, `log_dir` or none.
    pub(crate) fn declares(log_dir: Option<&str>) -> Capabilities {
        SlurmConfig { log_dir: log_dir.map(Into::into), ..SlurmConfig::default() }.capabilities()
    }

    pub(crate) fn new(tried: &Tried, slurm: &Slurm, accounting: Accounting) -> Self {
        let folder = folder();
        let logs = folder.path().join("logs");
        fs::create_dir(&logs).expect("a folder");
        fs::set_permissions(&logs, Permissions::from_mode(0o777)).expect("its mode");
        let config = SlurmConfig {
            url: slurm.url(),
            user: Some(slurm.account().to_owned()),
            token_command: Some(slurm.token_command(Duration::from_mins(30))),
            log_dir: Some(logs),
            slurmdb: accounting == Accounting::Slurmdbd,
            api_versions: tried
                .api
                .map_or(SlurmConfig::default().api_versions, |version| vec![version.to_owned()]),
            ..SlurmConfig::default()
        };
        Self { folder, config, ends_strays: slurm.ends_strays() }
    }

    /// Nothing is left of its jobs but what Slurm remembers.
    pub(crate) fn without_logs(mut self) -> Self {
        self.config.log_dir = None;
        self
    }

    /// An engine of other settings.
    pub(crate) fn engine_of(config: SlurmConfig) -> Arc<dyn Engine> {
        let context = conformance::context("slurm", Path::new("/nonexistent"), CALL_TIMEOUT);
        // reqwest wants a provider even where no TLS is spoken; an error says that there is one already.
        rustls::crypto::ring::default_provider().install_default().ok();
        build(&config.into(), &context).expect("an engine")
    }
}

impl Rig for SlurmRig {
    fn engine(&self) -> Arc<dyn Engine> {
        Self::engine_of(self.config.clone())
    }

    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        let url = match trouble {
            // Nobody listens there.
            Trouble::Cut => "http://127.0.0.1:1".to_owned(),
            Trouble::Mute => mute(self.config.url.clone()),
        };
        Self::engine_of(SlurmConfig { url, ..self.config.clone() })
    }

    /// For more processors than there are.
    fn has_to_wait(&self, job: &mut ToCreate) {
        job.spec.resources.cpus = Some(1000);
    }

    fn shared_dir(&self) -> &Path {
        self.folder.path()
    }

    fn ends_strays(&self) -> bool {
        self.ends_strays
    }

    /// Slurm counts time limits in minutes, and looks at them about as often.
    fn patience(&self) -> Duration {
        Duration::from_mins(5)
    }
}
