//! `jobgate serve`: the whole gateway in one process, for one host.

use super::{
    gateway::{Gateway, Place},
    signals::shut_down_on_signal,
};
use crate::{config::Config, exit::Exit, render::Output};
use tokio_util::sync::CancellationToken;

/// Runs the gateway until it is told to stop.
pub(crate) async fn run(config: &Config, mut output: Output) -> anyhow::Result<Exit> {
    let shutdown = CancellationToken::new();
    shut_down_on_signal(shutdown.clone())?;
    let place = Place { command: "serve", listen: config.api.listen, tls: true };
    let gateway = Gateway::start(config, place).await?;
    let token = match &config.api.admin_token {
        Some(_) => "the token is the configured one".to_owned(),
        None => format!("the token is in {}", gateway.data_dir.token_file().display()),
    };
    output.line(format_args!("jobgate serves {}; {token}", gateway.url))?;
    shutdown.cancelled().await;
    gateway.stop().await;
    tracing::info!("jobgate ended; jobs that were running are adopted by the next start");
    Ok(Exit::Done)
}
