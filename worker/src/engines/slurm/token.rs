//! Who a call to Slurm is made as, and the token that proves it: read from a file whenever it is needed, or made by a command
//! and kept until shortly before it expires.

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use jobgate_shared::clock::Clock;
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, sync::Mutex};

/// Where a token comes from; without either none is shown, which is right where slurmrestd knows us by its socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TokenSource {
    /// A file that holds the token; whoever renews it replaces the file.
    pub(super) token_file: Option<PathBuf>,
    /// A program and its arguments that print a token; `{user}` stands for the user's name. It is run again before the token
    /// expires.
    pub(super) token_command: Option<Vec<String>>,
}

/// A token is renewed when less of its life than this is left.
const MARGIN: TimeDelta = TimeDelta::seconds(60);
/// A token that does not say when it expires is renewed after this.
const UNTOLD: TimeDelta = TimeDelta::minutes(5);

impl TokenSource {
    pub(super) fn check(&self, setting: &str) -> anyhow::Result<()> {
        let both = self.token_file.is_some() && self.token_command.is_some();
        anyhow::ensure!(!both, "{setting}: name token_file or token_command, not both");
        let absolute = self.token_file.as_ref().is_none_or(|path| path.is_absolute());
        anyhow::ensure!(absolute, "{setting}: token_file must be an absolute path");
        let runs = self.token_command.as_ref().is_none_or(|argv| argv.first().is_some_and(|w| !w.is_empty()));
        anyhow::ensure!(runs, "{setting}: token_command must hold a program");
        Ok(())
    }
}

/// A token made by a command, and when to make the next.
#[derive(Clone)]
struct Made {
    token: String,
    renew_at: DateTime<Utc>,
}

/// Where one user's tokens come from, and the one in use.
struct User {
    source: TokenSource,
    made: Mutex<Option<Made>>,
}

/// The tokens of every user, by name; a command that hangs for one keeps no other waiting.
pub(super) struct Tokens {
    users: HashMap<String, User>,
    clock: Arc<dyn Clock>,
    patience: Duration,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(
        sources: HashMap<String, TokenSource>,
        clock: Arc<dyn Clock>,
        patience: Duration,
    ) -> Self {
        let user = |source| User { source, made: Mutex::default() };
        let users = sources.into_iter().map(|(name, source)| (name, user(source))).collect();
        Self { users, clock, patience }
    }

    /// The token of a user; `None` where none is to be shown.
    pub(super) async fn of(&self, user: &str) -> anyhow::Result<Option<String>> {
        let known = self.users.get(user).with_context(|| format!("no token is configured for {user}"))?;
        match &known.source {
            TokenSource { token_file: Some(path), .. } => read(path).await.map(Some),
            TokenSource { token_command: Some(argv), .. } => {
                self.made_by(user, &known.made, argv).await.map(Some)
            }
            TokenSource { token_file: None, token_command: None } => Ok(None),
        }
    }

    /// Slurm did not believe it: the next one is made anew.
    pub(super) async fn refused(&self, user: &str) {
        if let Some(known) = self.users.get(user) {
            *known.made.lock().await = None;
        }
    }

    async fn made_by(
        &self,
        user: &str,
        made: &Mutex<Option<Made>>,
        argv: &[String],
    ) -> anyhow::Result<String> {
        // Held over the run, so that one command is run and not one per call that waits for it.
        let mut made = made.lock().await;
        let now = self.clock.now();
        if let Some(known) = made.as_ref().filter(|known| now < known.renew_at) {
            return Ok(known.token.clone());
        }
        let token = run(user, argv, self.patience).await?;
        let renew_at = match expiry(&token) {
            // One that lives no longer than the margin is used for half its life.
            Some(end) => end - MARGIN.min((end - now) / 2),
            None => now + UNTOLD,
        };
        *made = Some(Made { token: token.clone(), renew_at });
        Ok(token)
    }
}

async fn read(path: &Path) -> anyhow::Result<String> {
    let text = tokio::fs::read_to_string(path).await;
    token_in(&text.with_context(|| format!("token_file {}", path.display()))?)
        .with_context(|| format!("token_file {}", path.display()))
}

async fn run(user: &str, argv: &[String], patience: Duration) -> anyhow::Result<String> {
    let (program, arguments) = argv.split_first().context("token_command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|word| word.replace("{user}", user)));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(patience, command.output());
    let output = done.await.context("token_command took too long")?.context("token_command cannot be run")?;
    // What it printed beside may be the token, so only its errors are told.
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "token_command: {}: {}", output.status, said.trim());
    token_in(&String::from_utf8(output.stdout).context("token_command")?).context("token_command")
}

/// A bare token, or the line `scontrol token` prints.
fn token_in(text: &str) -> anyhow::Result<String> {
    let token = text.trim();
    let token = token.strip_prefix("SLURM_JWT=").unwrap_or(token);
    let plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    anyhow::ensure!(plain, "holds no token");
    Ok(token.to_owned())
}

/// When a JWT says it ends. Its signature is Slurm's to check.
fn expiry(token: &str) -> Option<DateTime<Utc>> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    DateTime::from_timestamp(serde_json::from_slice::<Claims>(&claims).ok()?.exp, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::clock;

    fn jwt(exp: i64, serial: &str) -> String {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp},"iat":1,"sun":"{serial}"}}"#));
        format!("eyJhbGciOiJIUzI1NiJ9.{claims}.c2ln")
    }

    fn tokens(source: TokenSource) -> Tokens {
        let sources = HashMap::from([("jane".to_owned(), source)]);
        Tokens::new(sources, clock::system(), Duration::from_secs(20))
    }

    #[tokio::test]
    async fn a_token_file_that_is_replaced_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let tokens = tokens(TokenSource { token_file: Some(path.clone()), token_command: None });
        assert!(tokens.of("jane").await.is_err(), "no file yet");
        for (text, token) in [("one\n", "one"), ("SLURM_JWT=two\n", "two")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(tokens.of("jane").await.unwrap().as_deref(), Some(token));
        }
        std::fs::write(&path, "two words").unwrap();
        assert!(tokens.of("jane").await.is_err());
        assert!(tokens.of("joe").await.is_err(), "nobody configured one for joe");
    }

    #[tokio::test]
    async fn a_token_command_is_run_again_before_its_token_expires_and_when_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let now = clock::system().now().timestamp();
        let (lasting, ending) = (jwt(now + 3600, "a"), jwt(now - 1, "b"));
        for (token, runs) in [(lasting, [1, 1, 2]), (ending, [1, 2, 3])] {
            std::fs::write(&count, "").unwrap();
            let script = format!("echo \"$1\" >> {}; echo SLURM_JWT={token}", count.display());
            let argv = ["/bin/sh", "-c", &script, "sh", "{user}"].map(str::to_owned).to_vec();
            let tokens = tokens(TokenSource { token_file: None, token_command: Some(argv) });
            let ran = || std::fs::read_to_string(&count).unwrap().matches("jane\n").count();
            let mut seen = Vec::new();
            for refused in [false, false, true] {
                if refused {
                    tokens.refused("jane").await;
                }
                assert_eq!(tokens.of("jane").await.unwrap().as_deref(), Some(token.as_str()));
                seen.push(ran());
            }
            assert_eq!(seen, runs, "{token}");
        }
    }

    #[tokio::test]
    async fn a_token_command_that_hangs_for_one_user_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let begun = dir.path().join("begun");
        let source = |script: &str| TokenSource {
            token_file: None,
            token_command: Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
        };
        let hangs = format!("echo > {}; exec sleep 600", begun.display());
        let users =
            HashMap::from([("jane".to_owned(), source(&hangs)), ("joe".to_owned(), source("echo token"))]);
        let tokens = Tokens::new(users, clock::system(), Duration::from_mins(1));
        let joe = async {
            while !begun.exists() {
                tokio::task::yield_now().await;
            }
            tokens.of("joe").await.unwrap()
        };
        tokio::select! {
            jane = tokens.of("jane") => panic!("{jane:?}"),
            joe = joe => assert_eq!(joe.as_deref(), Some("token")),
        }
    }

    #[tokio::test]
    async fn a_token_command_that_fails_says_what_it_said() {
        let argv = ["/bin/sh", "-c", "echo no such user >&2; exit 3"].map(str::to_owned).to_vec();
        let tokens = tokens(TokenSource { token_file: None, token_command: Some(argv) });
        let error = format!("{:#}", tokens.of("jane").await.unwrap_err());
        assert!(error.contains("no such user"), "{error}");
    }
}
