//! `contract SCHEMATHESIS FLAG…`: holds a running gateway, in both its forms, against its own `/openapi.json`.
//!
//! Runs that program over every operation, as an operator and as two tenants who must not see each other's jobs, with the
//! settings in `tests/contract`. Fails with it, and when afterwards the gateway is not ready, has panicked or does not end
//! well. To be run by `with-services`.
#![allow(clippy::print_stderr, reason = "a command of the terminal; its program owns the standard output")]

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    gateway::{Client, Role, Site},
    scrape::Scrape,
    services::{Database, Vhost},
};
use serde_json::{Value, json};
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

/// One cluster served from outside, one whose jobs end at once, and one whose jobs are there to be canceled.
const CONFIG: &str = r#"
default_cluster = "local"

[clusters.outside]
engine = "external"

[clusters.local]
engine = "noop"

[clusters.slow]
engine = "noop"
run_for = "1m"
"#;

/// The projects of the tenants, whom `tenants.toml` names so.
const TENANTS: [&str; 2] = ["a", "b"];

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contract: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut words = env::args_os().skip(1);
    let program = words.next().context("usage: contract SCHEMATHESIS FLAG…")?;
    // Both forms are looked at whatever the first one shows.
    let schemathesis = Schemathesis { program: fs::canonicalize(program)?, flags: words.collect() };
    let embedded = embedded(&schemathesis).await.context("the embedded form");
    let distributed = distributed(&schemathesis).await.context("the distributed form");
    embedded.and(distributed)
}

async fn embedded(schemathesis: &Schemathesis) -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let gateway = site.start("serve").await?;
    hold(schemathesis, &site, vec![gateway]).await
}

async fn distributed(schemathesis: &Schemathesis) -> Result<()> {
    let (database, vhost) = tokio::try_join!(Database::fresh(), Vhost::fresh())?;
    let mut site = Site::distributed(CONFIG, database.url(), vhost.url())?;
    site.run(&["migrate"])?;
    let mut roles = Vec::new();
    for role in ["api", "recorder", "worker"] {
        roles.push(site.start(role).await?);
    }
    hold(schemathesis, &site, roles).await
}

/// The API is the first of `roles`.
async fn hold(schemathesis: &Schemathesis, site: &Site, mut roles: Vec<Role>) -> Result<()> {
    let client = site.client(&roles[0])?;
    // Enough for every claim there is to get something.
    let job = json!({"cluster": "outside", "spec": {"command": ["true"]}, "max_attempts": 3});
    for n in 0..3 {
        client.submit(&format!("to-be-claimed-{n}"), &vec![job.clone(); 100]).await?;
    }
    let tenants = site.file("tenants.json");
    fs::write(&tenants, tenants_of(&client).await?.to_string())?;
    let operator = ("JOBGATE_CONTRACT_TOKEN", OsString::from(site.token()?));
    let held = [
        schemathesis.run("schemathesis.toml", &roles[0].url, operator),
        schemathesis.run("tenants.toml", &roles[0].url, ("JOBGATE_CONTRACT_TENANTS", tenants.into())),
    ];
    for role in &mut roles {
        role.ready().await?;
    }
    let scrape = Scrape::parse(&client.text("/metrics").await?)?;
    let panics = scrape.value("jobgate_http_panics_total", &[]).unwrap_or_default();
    ensure!(panics == 0.0, "{panics} handlers panicked\n{}", roles[0].process.log_tail());
    for mut role in roles {
        role.drain(Duration::from_secs(30)).await?;
    }
    held.into_iter().collect()
}

/// A token for each tenant, as a file of Web Fuzzing Commons.
async fn tenants_of(client: &Client) -> Result<Value> {
    let mut users = Vec::new();
    for tenant in TENANTS {
        let wish = json!({"name": tenant, "project": tenant, "roles": ["admin"]});
        let (status, made) = client.post("/v1/tokens", &wish).await?;
        ensure!(status == 201, "a token for {tenant}: {status} {made}");
        let bearer = format!("Bearer {}", made["token"].as_str().context("its text")?);
        users.push(json!({"name": tenant, "fixedHeaders": [{"name": "Authorization", "value": bearer}]}));
    }
    Ok(json!({"auth": users}))
}

/// The program, and what it is told beside its settings.
struct Schemathesis {
    program: PathBuf,
    flags: Vec<OsString>,
}

impl Schemathesis {
    fn run(&self, settings: &str, url: &str, secret: (&str, OsString)) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("contract"));
        command.args(["--config-file", settings, "run", &format!("{url}/openapi.json"), "--no-color"]);
        // Nothing is remembered between runs: the seed tells all.
        command.args(["--generation-database", "none"]).args(&self.flags);
        // Nor does the order of a set differ from run to run.
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONHASHSEED", "0").env(secret.0, secret.1);
        let status = command.status().with_context(|| format!("run {}", self.program.display()))?;
        ensure!(status.success(), "{settings}: {status}");
        Ok(())
    }
}
