//! The server itself, over real sockets.

use crate::{
    http::{Hosts, HttpConfig, problem::Problem, router, serve},
    testing::{Bench, small_job},
};
use axum::{Router, routing::get};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::Instant,
};

struct Server {
    bench: Bench,
    address: SocketAddr,
    ended: JoinHandle<()>,
}

fn quick() -> HttpConfig {
    let header_timeout = "300ms".to_owned().try_into().unwrap();
    let drain_timeout = "300ms".to_owned().try_into().unwrap();
    HttpConfig { header_timeout, drain_timeout, ..HttpConfig::default() }
}

/// Serves a bench's API, and `extra` paths beside it.
async fn server(config: HttpConfig, extra: Router) -> Server {
    let bench = Bench::with(config.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router(bench.api.clone(), Hosts::new(address, &[])).merge(extra);
    let tasks = bench.tasks.clone();
    #[allow(clippy::disallowed_methods, reason = "the test waits for it")]
    let ended = tokio::spawn(async move { serve(listener, None, router, &config, &tasks).await });
    Server { bench, address, ended }
}

impl Server {
    /// Sends `text` and reads until the server closes.
    async fn say(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    async fn stop(self) {
        self.bench.tasks.stop().await;
        self.ended.await.unwrap();
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_over_a_socket_is_answered() {
    let server = server(quick(), Router::new()).await;
    let body = small_job().to_string();
    let answer = server
        .say(&format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            server.bench.admin,
            body.len()
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_or_its_head_too_slowly_is_cut_off() {
    let server = server(quick(), Router::new()).await;
    let limit = Duration::from_secs(10);
    for begun in ["", "P", "PRI * HTTP/2.0\r\n", "GET /v1/jobs HTTP/1.1\r\nHost: loc"] {
        let began = Instant::now();
        let answer = tokio::time::timeout(limit, server.say(begun)).await.expect("cut off");
        assert!(began.elapsed() >= Duration::from_millis(250), "{begun:?}: {answer}");
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // One that trickles is not given more time for each byte.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let trickled = tokio::time::timeout(limit, async {
        for byte in b"GET /v1/jobs HTTP/1.1\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x')) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    trickled.await.expect("cut off");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_unread() {
    let server = server(quick(), Router::new()).await;
    let answer = server
        .say(&format!(
            "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: 99999999\r\n\r\n",
            server.bench.admin
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_foreign_host_is_turned_away_on_the_wire() {
    let server = server(quick(), Router::new()).await;
    let answer = server.say("GET /v1/jobs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn more_connections_than_there_is_room_for_wait_for_one_to_end() {
    let config = HttpConfig { max_connections: "1".parse().unwrap(), ..quick() };
    let server = server(config, Router::new()).await;
    let silent = TcpStream::connect(server.address).await.unwrap();
    let began = Instant::now();
    let answer = server.say("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(250), "the silent one had the place");
    drop(silent);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_requests_under_way_finish_and_cuts_off_what_does_not() {
    let open = Arc::new(tokio::sync::Notify::new());
    let begun = Arc::new(tokio::sync::Semaphore::new(0));
    let (wait, mark) = (open.clone(), begun.clone());
    let slow = get(async move || {
        mark.add_permits(1);
        wait.notified().await;
        "done"
    });
    let mark = begun.clone();
    let endless = get(async move || {
        mark.add_permits(1);
        std::future::pending::<()>().await;
    });
    let server = server(quick(), Router::new().route("/slow", slow).route("/endless", endless)).await;
    let ask = |path| server.say(path);
    let (finished, cut, ()) = tokio::join!(
        ask("GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ask("GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        async {
            drop(begun.acquire_many(2).await.unwrap());
            server.bench.tasks.shutdown().cancel();
            open.notify_one();
        }
    );
    assert!(finished.ends_with("done"), "{finished}");
    assert_eq!(cut, "");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody new is let in");
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_answers_and_leaves_the_server_standing() {
    let bench = Bench::new();
    let panics: Router =
        Router::new().route("/panics", get(async || -> Result<(), Problem> { panic!("on purpose") }));
    let hosts = Arc::new(Hosts::new("127.0.0.1:1".parse().unwrap(), &[]));
    let router = panics.layer(axum::middleware::from_fn_with_state(hosts, crate::http::envelope::envelope));
    let request =
        axum::http::Request::get("/panics").header("host", "localhost").body(axum::body::Body::empty());
    let answer = tower::ServiceExt::oneshot(router, request.unwrap()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 500);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    drop(bench);
}
