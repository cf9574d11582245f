//! `jobgate migrate`: brings PostgreSQL's schema up to date. Safe while older processes run, and from several at once.

use super::{patience::until_there, signals::shut_down_on_signal};
use crate::{commands::tell, config::Config, exit::Exit};
use jobgate_shared::store::postgres;
use tokio_util::sync::CancellationToken;

/// Runs the migrations that are missing, once the database is there.
pub(crate) async fn run(config: &Config) -> anyhow::Result<Exit> {
    let shutdown = CancellationToken::new();
    shut_down_on_signal(shutdown.clone())?;
    let postgres = config.store.postgres("migrate")?;
    let migrated = until_there("the database", &shutdown, || Box::pin(postgres::migrate(&postgres))).await?;
    if migrated.is_none() {
        return Ok(Exit::Interrupted);
    }
    tell("the schema is up to date");
    Ok(Exit::Done)
}
