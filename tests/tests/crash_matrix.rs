//! Processes aborted in every gap of the protocol, and started again. `make crash-matrix` runs all of it.

use anyhow::{Result, ensure};
use jobgate_tests::{crash, environment};

#[tokio::test]
async fn wherever_a_process_ends_every_accepted_job_ends_as_it_would_have_and_begins_once() -> Result<()> {
    let part = environment::crash_matrix()?;
    let report = crash::run(&part).await;
    println!("{}", report.table(&part));
    let failures = report.failures;
    ensure!(failures.is_empty(), "{} failures:\n\n{}", failures.len(), failures.join("\n\n"));
    Ok(())
}
