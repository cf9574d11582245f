//! The server itself, over real sockets.

use crate::{
    http::{Hosts, HttpConfig, problem::Problem, router, serve, server::Serving},
    testing::{Bench, small_job},
};
use axum::{Router, body::Body, routing::get};
use jobgate_shared::supervise::Tasks;
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
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

/// The beginning of an HTTP/2 connection that lets so many bytes of each answer come, and a GET of `path` on it.
fn asked_over_http2(path: &str, window: u32) -> Vec<u8> {
    let mut told = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS, of which one: INITIAL_WINDOW_SIZE.
    told.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4]);
    told.extend(window.to_be_bytes());
    // HEADERS that end the request: GET, http, the path, the host.
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let mut head = vec![0x82, 0x86, 0x44, length(path)];
    head.extend(path.bytes());
    head.extend([0x41, length("localhost")]);
    head.extend(b"localhost");
    told.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    told.extend(head);
    told
}

#[tokio::test]
async fn a_client_of_http2_that_asks_for_nothing_more_gives_its_place_up() {
    let config = HttpConfig { max_connections: "1".parse().unwrap(), ..quick() };
    let server = server(config, Router::new()).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent.write_all(&asked_over_http2("/livez", 65_535)).await.unwrap();
    let asked = server.say("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = tokio::time::timeout(Duration::from_secs(10), asked).await.expect("a place");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(silent);
    server.stop().await;
}

/// The header timeout of the tests whose time is paused.
const LIMIT: Duration = Duration::from_secs(1);

/// A client of a server of this one path, and the server's end.
fn served(path: &str, handler: axum::routing::MethodRouter) -> (DuplexStream, impl Future<Output = ()>) {
    let config = HttpConfig { header_timeout: "1s".to_owned().try_into().unwrap(), ..HttpConfig::default() };
    let serving = Serving::new(None, Router::new().route(path, handler), &config, &Tasks::default());
    let (client, stream) = duplex(1024);
    (client, async move { serving.requests(stream).await })
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_of_its_answers_is_cut_off() {
    let large = || get(async || "x".repeat(1024 * 1024));
    let pipelined = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10).into_bytes();
    for asked in [pipelined, asked_over_http2("/", 0), asked_over_http2("/", 1 << 20)] {
        let (mut client, over) = served("/", large());
        let began = Instant::now();
        let (said, ()) = tokio::join!(client.write_all(&asked), over);
        said.unwrap();
        assert!(began.elapsed() >= LIMIT && began.elapsed() <= 8 * LIMIT, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answer_slowly_gets_all_of_it() {
    let (mut client, over) = served("/", get(async || "x".repeat(1024 * 1024)));
    let reading = async {
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while (&mut client).take(32 * 1024).read_to_end(&mut answer).await.unwrap() > 0 {
            tokio::time::sleep(LIMIT).await;
        }
        answer.len()
    };
    let (read, ()) = tokio::join!(reading, over);
    assert!(read > 1024 * 1024, "{read}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_nothing_to_tell_for_long_goes_on() {
    let late = get(async || {
        let told = futures::stream::once(async {
            tokio::time::sleep(100 * LIMIT).await;
            Ok::<_, Infallible>("at last")
        });
        Body::from_stream(told)
    });
    let (mut client, over) = served("/", late);
    let reading = async {
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (answer, ()) = tokio::join!(reading, over);
    assert!(answer.contains("at last"), "{answer}");
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
