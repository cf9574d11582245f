//! A run does not end well while something it started still lives. One test alone in its process, whose children it is
//! about.

use anyhow::{Context, Result};
use jobgate_tests::containment;
use rustix::process::{Pid, test_kill_process};
use tokio::process::Command;

#[tokio::test]
async fn a_process_left_behind_is_named_and_killed_and_the_exit_code_is_the_commands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pid");
    let mut command = Command::new("sh");
    command.arg("-c").arg("(setsid sleep 300 & echo $! >\"$0\"); exit 7").arg(&file);
    let outcome = containment::run(command, std::future::pending()).await?;
    let pid = std::fs::read_to_string(&file)?;
    let pid = pid.trim();
    assert_eq!(outcome.code, 7);
    assert_eq!(outcome.leftovers, [format!("{pid} sleep 300")]);
    test_kill_process(Pid::from_raw(pid.parse()?).context("a pid")?).unwrap_err();

    let mut command = Command::new("sleep");
    command.arg("300");
    let outcome = containment::run(command, async { 130 }).await?;
    assert_eq!(
        (outcome.code, outcome.leftovers.as_slice()),
        (130, [].as_slice()),
        "an interrupted run leaves nothing"
    );
    Ok(())
}
