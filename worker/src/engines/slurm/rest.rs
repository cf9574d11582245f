//! HTTP with slurmrestd: which version of its API, whose token, and every call cut off in time. Nothing is tried twice here:
//! a request that went unanswered may have been carried out.

use super::{
    config::SlurmConfig,
    state::Fault,
    token::Tokens,
    wire::{Answer, JobRecord},
};
use anyhow::{Context as _, anyhow};
use jobgate_shared::domain::ClusterName;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// A version of the API, such as `v0.0.38`.
pub(super) type Version = String;

/// The most of an answer that is kept for people when it is no document.
const QUOTED: usize = 200;

/// A client of one slurmrestd.
#[derive(Debug)]
pub(super) struct Rest {
    cluster: ClusterName,
    client: Client,
    base: String,
    tokens: Tokens,
    versions: Vec<Version>,
    /// The newest of them it was seen to speak.
    spoken: Mutex<Option<Version>>,
    slurmdb: bool,
}

impl Rest {
    pub(super) fn new(cluster: ClusterName, config: &SlurmConfig, tokens: Tokens) -> anyhow::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none());
        let (client, base) = match config.url.strip_prefix("unix:") {
            Some(socket) => (client.unix_socket(PathBuf::from(socket)), "http://localhost".to_owned()),
            None => (client, config.url.trim_end_matches('/').to_owned()),
        };
        let client = client.build().context("an HTTP client")?;
        let (versions, slurmdb) = (config.api_versions.clone(), config.slurmdb);
        Ok(Self { cluster, client, base, tokens, versions, spoken: Mutex::new(None), slurmdb })
    }

    /// The newest configured version it speaks.
    pub(super) async fn version(&self, user: &str) -> Result<Version, Fault> {
        if let Some(version) = self.spoken().clone() {
            return Ok(version);
        }
        for version in &self.versions {
            let path = format!("/slurm/{version}/ping");
            let (status, body) = self.send(user, Method::GET, &path, None).await?;
            if status == StatusCode::UNAUTHORIZED {
                return Err(self.not_believed(user, &body).await);
            }
            // Whatever else it says of slurmctld, it says it in this version.
            if status != StatusCode::NOT_FOUND {
                tracing::debug!(version, "slurmrestd speaks it");
                *self.spoken() = Some(version.clone());
                return Ok(version.clone());
            }
        }
        Err(Fault::Away(anyhow!("slurmrestd speaks none of {}", self.versions.join(", "))))
    }

    /// Every job the user may see.
    pub(super) async fn jobs(&self, user: &str) -> Result<Vec<JobRecord>, Fault> {
        listed(self.ask(user, Method::GET, "slurm", "jobs", None).await?)
    }

    /// One job; `None` where it is not known.
    pub(super) async fn job(&self, user: &str, id: u32) -> Result<Option<JobRecord>, Fault> {
        match self.ask(user, Method::GET, "slurm", &format!("job/{id}"), None).await {
            Ok(answer) => Ok(listed(answer)?.into_iter().find(|job| job.job_id == Some(i64::from(id)))),
            Err(Fault::Unknown) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Every job slurmdbd knows by an id; none where it is not asked.
    pub(super) async fn stored(&self, user: &str, id: u32) -> Result<Vec<JobRecord>, Fault> {
        if !self.slurmdb {
            return Ok(Vec::new());
        }
        match self.ask(user, Method::GET, "slurmdb", &format!("job/{id}"), None).await {
            Ok(answer) => listed(answer),
            Err(Fault::Unknown) => Ok(Vec::new()),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn submit(&self, user: &str, body: &Value) -> Result<u32, Fault> {
        let answer = self.ask(user, Method::POST, "slurm", "job/submit", Some(body)).await?;
        let id = answer.job_id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id > 0);
        id.ok_or_else(|| Fault::Away(anyhow!("slurmrestd told no job id of a submission")))
    }

    pub(super) async fn update(&self, user: &str, id: u32, body: &Value) -> Result<(), Fault> {
        self.ask(user, Method::POST, "slurm", &format!("job/{id}"), Some(body)).await.map(drop)
    }

    pub(super) async fn cancel(&self, user: &str, id: u32) -> Result<(), Fault> {
        self.ask(user, Method::DELETE, "slurm", &format!("job/{id}"), None).await.map(drop)
    }

    async fn ask(
        &self,
        user: &str,
        method: Method,
        plugin: &str,
        what: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Fault> {
        let version = self.version(user).await?;
        let (status, text) = self.send(user, method, &format!("/{plugin}/{version}/{what}"), body).await?;
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.not_believed(user, &text).await);
        }
        let answer = serde_json::from_slice::<Answer>(&text);
        // Of one job it may mean that this is not known, and newer versions say so in a document.
        let one = what.starts_with("job/") && what != "job/submit";
        if status == StatusCode::NOT_FOUND && !(one && answer.is_ok()) {
            // It was upgraded, or is another one by now.
            *self.spoken() = None;
        }
        let Ok(answer) = answer else {
            return Err(Fault::Away(anyhow!("slurmrestd answered with status {status}: {}", quoted(&text))));
        };
        let doubts = answer.doubts_who_asks();
        let judged = answer.judged(status.as_u16());
        if doubts && judged.is_err() {
            self.tokens.refused(user).await;
        }
        judged
    }

    async fn send(
        &self,
        user: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>), Fault> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = self.tokens.of(user).await.map_err(Fault::NotBelieved)? {
            request = request.header("X-SLURM-USER-NAME", user).header("X-SLURM-USER-TOKEN", token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        crate::pace::request(&self.cluster);
        let sent = async {
            let response = request.send().await?;
            Ok((response.status(), response.bytes().await?.to_vec()))
        };
        sent.await.map_err(|error: reqwest::Error| Fault::Away(error.without_url().into()))
    }

    async fn not_believed(&self, user: &str, text: &[u8]) -> Fault {
        self.tokens.refused(user).await;
        Fault::NotBelieved(anyhow!("slurmrestd does not believe that we are {user}: {}", quoted(text)))
    }

    /// A panic elsewhere leaves nothing half done in here.
    fn spoken(&self) -> std::sync::MutexGuard<'_, Option<Version>> {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From what lists no jobs no absence follows.
fn listed(answer: Answer) -> Result<Vec<JobRecord>, Fault> {
    answer.jobs.ok_or_else(|| Fault::Away(anyhow!("slurmrestd listed no jobs where it was to")))
}

fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(QUOTED)]);
    text.trim().escape_debug().to_string()
}
