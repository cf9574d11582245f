//! What a test process learns from outside: the addresses of the run's servers, and where the `jobgate` binary lies.
//! The only place of the harness that reads environment variables. A missing one is a failure with the remedy in it,
//! never a skipped test.
#![allow(
    clippy::disallowed_methods,
    reason = "the runner speaks to its tests through the environment, here alone"
)]

use std::env;
use std::path::PathBuf;

use crate::crash::Part;
use anyhow::{Context, Result, bail};

/// `postgres://` address of the run's server, database `postgres`, a user who may create databases.
pub const DATABASE_URL: &str = "JOBGATE_TEST_DATABASE_URL";
/// `amqp://` address of the run's broker, vhost `/`.
pub const AMQP_URL: &str = "JOBGATE_TEST_AMQP_URL";
/// `http://user:password@…` address of the same broker's management API.
pub const MANAGEMENT_URL: &str = "JOBGATE_TEST_MANAGEMENT_URL";

/// `whole` for every cell of the crash matrix, or a point's name for every cell of it; otherwise a slice.
const CRASH_MATRIX: &str = "JOBGATE_TEST_CRASH_MATRIX";

/// A directory with a Debian 13 and its Slurm 24.11, as tests/slurm-24.11/install makes it.
const SLURM_24_11: &str = "JOBGATE_TEST_SLURM_24_11";

/// Where a Slurm 24.11 lies that can be run; `None` where none could be installed, which whoever asks has to say.
/// `slurmctld` itself is a link that leads out of its directory.
pub fn slurm_24_11() -> Option<PathBuf> {
    env::var_os(SLURM_24_11).map(PathBuf::from).filter(|root| root.join("usr/sbin/slurmctld-wlm").is_file())
}

/// How much of the crash matrix is asked for.
pub fn crash_matrix() -> Result<Part> {
    match env::var(CRASH_MATRIX).as_deref() {
        Ok("whole") => Ok(Part::Whole),
        Ok("") | Err(env::VarError::NotPresent) => Ok(Part::Slice),
        Ok(point) => Ok(Part::Point(point.to_owned())),
        Err(env::VarError::NotUnicode(_)) => bail!("{CRASH_MATRIX} is `whole` or a point's name"),
    }
}

/// How much a test does of what `name` says, for more than a build has time for; `usual` when nobody says.
pub fn size(name: &str, usual: usize) -> Result<usize> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is a number, not {text:?}")),
        Err(env::VarError::NotPresent) => Ok(usual),
        Err(error) => Err(error).context(name.to_owned()),
    }
}

/// The value of `name`, or an error that says how to get one.
pub fn required(name: &str) -> Result<String> {
    env::var(name).with_context(|| {
        format!(
            "{name} is not set, so there is no server for this test: run `make test`, \
             or `cargo run -p jobgate-tests --bin with-services -- cargo test …`"
        )
    })
}

/// The `jobgate` binary built with this program: cargo's own word for it, else the file beside it, or beside the `deps`
/// folder a test lies in.
pub fn jobgate() -> Result<PathBuf> {
    if let Ok(path) = env::var("CARGO_BIN_EXE_jobgate") {
        return Ok(path.into());
    }
    let program = env::current_exe().context("where this program's executable lies")?;
    let beside = program.ancestors().skip(1).take(2).map(|folder| folder.join("jobgate"));
    let found = beside.into_iter().find(|binary| binary.is_file());
    found.with_context(|| {
        format!("there is no jobgate near {}: run `cargo build -p jobgate` first", program.display())
    })
}
