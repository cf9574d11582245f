//! Clients that connect and say nothing, or next to nothing: those who speak are served meanwhile, and the others go.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    environment,
    gateway::{Client, Role, Site},
    wait::until,
};
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

const CONFIG: &str =
    "[api.http]\nheader_timeout = \"3s\"\nmax_connections = 20000\n[clusters.noop]\nengine = \"noop\"\n";
/// How long after its time is up a connection may still be there on a busy machine.
const LATE: Duration = Duration::from_secs(7);

/// How many of them, of each kind: as many as the files this process may open allow; `JOBGATE_TEST_CONNECTIONS` says
/// otherwise.
fn crowd() -> Result<usize> {
    let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    let usual = usize::try_from(open / 4).unwrap_or(usize::MAX).clamp(50, 400);
    environment::size("JOBGATE_TEST_CONNECTIONS", usual)
}

fn files_of(role: &Role) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", role.process.pid()))?.count())
}

/// Connects, sends `head` a byte at a time as slowly as `pause` says, and tells how long it was let.
async fn dawdle(address: String, head: &'static [u8], pause: Duration) -> Result<Duration> {
    let mut stream = TcpStream::connect(address).await?;
    let began = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let mut said = Vec::new();
    let talk = async {
        for byte in head {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // An answer that says so may come before the end; a reset is an end too.
        _ = reader.read_to_end(&mut said) => {}
        () = talk => {}
        () = tokio::time::sleep(2 * LATE) => {}
    }
    Ok(began.elapsed())
}

/// The slowest of some requests, one after the other.
async fn slowest(client: &Client, requests: usize) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..requests {
        let began = Instant::now();
        let (status, job) = client.post("/v1/jobs", &json!({"spec": {"command": ["true"]}})).await?;
        ensure!(status == 201, "{status} {job}");
        slowest = slowest.max(began.elapsed());
    }
    Ok(slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_slow_clients_are_let_go_in_time_and_hurt_nobody_meanwhile() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let alone = slowest(&client, 50).await?;
    let before = files_of(&serve)?;
    let address = serve.url.strip_prefix("http://").context("a plain address")?.to_owned();
    let crowd = crowd()?;
    let mut crowd_of = JoinSet::new();
    let head =
        b"GET /v1/jobs HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for (head, pause) in [(&b""[..], 0), (&head[..], 250), (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], 400)] {
        for _ in 0..crowd {
            crowd_of.spawn(dawdle(address.clone(), head, Duration::from_millis(pause)));
        }
    }
    until("they are connected", Duration::from_secs(20), async || {
        let files = files_of(&serve)?;
        ensure!(files > before + crowd, "{files} files, {before} before");
        Ok(())
    })
    .await?;
    let meanwhile = slowest(&client, 50).await?;
    let most = files_of(&serve)?;
    ensure!(most <= before + 3 * crowd + 20, "{most} files for {} connections", 3 * crowd);
    ensure!(meanwhile < alone + Duration::from_secs(2), "{meanwhile:?}, and {alone:?} when alone");
    while let Some(let_for) = crowd_of.join_next().await {
        let let_for = let_for??;
        ensure!(let_for < Duration::from_secs(3) + LATE, "it was let for {let_for:?}");
    }
    until("what they held is free", Duration::from_secs(20), async || {
        let files = files_of(&serve)?;
        ensure!(files <= before + 10, "{files} files, {before} before");
        Ok(())
    })
    .await?;
    serve.drain(Duration::from_secs(30)).await
}
