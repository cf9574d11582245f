//! The network between one process and one server: a TCP proxy on a port of its own that can be made to misbehave.

mod frontend;

use crate::ports;
use anyhow::{Context as _, Result, anyhow};
use frontend::Frontend;
use jobgate_shared::supervise::Tasks;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::Url;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// How long the server is given to answer what the client must not hear.
const ANSWER: Duration = Duration::from_secs(2);

/// What speaks through a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL's, in which commits are recognised.
    Postgres,
    /// Any other.
    Opaque,
}

/// How a link treats what passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// As a wire would.
    Pass,
    /// Connections end, and new ones are closed as soon as they are made.
    Refuse,
    /// Nothing passes in these directions, and nobody is told; what was sent meanwhile passes afterwards.
    Stall {
        /// From the process to the server.
        up: bool,
        /// From the server to the process.
        down: bool,
    },
    /// Every piece waits first.
    Delay(Duration),
    /// A connection ends after at most so many more bytes of the process, amid a message.
    CutWithin(u64),
    /// This share of commits goes unanswered: one half carried out, of which the process does not hear, the other half
    /// never sent.
    UnknownCommits(f64),
}

/// What a link has done to its connections.
#[derive(Debug, Default)]
pub struct Damage {
    /// Commits carried out whose answer was dropped.
    pub unheard_commits: AtomicU64,
    /// Commits dropped on their way.
    pub unsent_commits: AtomicU64,
    /// Connections ended.
    pub cut: AtomicU64,
}

/// One link. It carries until its tasks are stopped.
#[derive(Debug, Clone)]
pub struct Link {
    address: SocketAddr,
    inside: Arc<Inside>,
}

#[derive(Debug)]
struct Inside {
    target: SocketAddr,
    protocol: Protocol,
    mode: watch::Sender<Mode>,
    cuts: watch::Sender<u64>,
    damage: Arc<Damage>,
    chance: Mutex<StdRng>,
}

impl Link {
    /// A link to the server of this address, and the same address by way of the link.
    pub async fn to(
        url: &str,
        protocol: Protocol,
        seed: u64,
        damage: Arc<Damage>,
        tasks: &Tasks,
    ) -> Result<(Self, String)> {
        let mut url: Url = url.parse().context("the address of a server")?;
        let target = url.socket_addrs(|| None)?.into_iter().next();
        let target = target.with_context(|| format!("{url} is nowhere"))?;
        let link = Self::open(target, protocol, seed, damage, tasks).await?;
        url.set_port(Some(link.address.port())).map_err(|()| anyhow!("{url} takes no port"))?;
        Ok((link, url.into()))
    }

    /// A link to `target` that passes everything; `seed` decides what is left to chance.
    async fn open(
        target: SocketAddr,
        protocol: Protocol,
        seed: u64,
        damage: Arc<Damage>,
        tasks: &Tasks,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports::free()?)).await?;
        let address = listener.local_addr()?;
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        let (mode, cuts) = (watch::Sender::new(Mode::Pass), watch::Sender::new(0));
        let inside = Arc::new(Inside { target, protocol, mode, cuts, damage, chance });
        let (carrying, carriers) = (inside.clone(), tasks.clone());
        tasks.spawn("link", async move {
            while let Some(Ok((client, _))) =
                carriers.shutdown().clone().run_until_cancelled(listener.accept()).await
            {
                let (inside, stop) = (carrying.clone(), carriers.shutdown().clone());
                carriers.spawn("connection", async move {
                    stop.run_until_cancelled(inside.carry(client)).await;
                });
            }
        });
        Ok(Self { address, inside })
    }

    /// Treats everything so from now on.
    pub fn set(&self, mode: Mode) {
        if mode == Mode::Refuse {
            self.cut();
        }
        self.inside.mode.send_replace(mode);
    }

    /// Ends every connection there is.
    pub fn cut(&self) {
        self.inside.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// What the two directions of one connection know of each other.
#[derive(Default)]
struct Muzzle(AtomicBool);

impl Inside {
    async fn carry(&self, client: TcpStream) {
        let mut cut = self.cuts.subscribe();
        if *self.mode.borrow() == Mode::Refuse {
            return;
        }
        let Ok(server) = TcpStream::connect(self.target).await else { return };
        // A proxy that waits for more would be slower than any network.
        if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
            return;
        }
        let muzzle = Muzzle::default();
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            // First, so that what a stall held back does not slip through a cut that ends it.
            biased;
            _ = cut.changed() => drop(self.damage.cut.fetch_add(1, Ordering::Relaxed)),
            () = self.carry_up(from_client, to_server, &muzzle) => {}
            () = self.carry_down(from_server, to_client, &muzzle) => {}
        }
    }

    async fn carry_up(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, muzzle: &Muzzle) {
        let mut buffer = vec![0; 64 * 1024];
        let mut frontend = Frontend::default();
        let mut allowance = None;
        loop {
            let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
            let mut piece = &buffer[..n];
            let commits = match self.protocol {
                Protocol::Postgres => frontend.read(piece),
                Protocol::Opaque => Vec::new(),
            };
            let mode = self.passage(|mode| matches!(mode, Mode::Stall { up: true, .. })).await;
            match mode {
                Mode::Pass | Mode::Refuse | Mode::Stall { .. } => {}
                Mode::Delay(pause) => tokio::time::sleep(pause).await,
                Mode::CutWithin(most) => {
                    let left =
                        *allowance.get_or_insert_with(|| self.chance(|rng| rng.random_range(1..=most)));
                    let passing = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                    allowance = Some(left - passing as u64);
                    piece = &piece[..passing];
                }
                Mode::UnknownCommits(share) => {
                    if let Some(end) = commits.into_iter().find(|_| self.chance(|rng| rng.random_bool(share)))
                    {
                        if self.chance(|rng| rng.random_bool(0.5)) {
                            self.damage.unsent_commits.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        muzzle.0.store(true, Ordering::SeqCst);
                        self.damage.unheard_commits.fetch_add(1, Ordering::Relaxed);
                        if to.write_all(&piece[..end]).await.is_ok() {
                            // The other direction ends the connection when the server answers.
                            tokio::time::sleep(ANSWER).await;
                        }
                        return;
                    }
                }
            }
            if to.write_all(piece).await.is_err() || allowance == Some(0) {
                return;
            }
            if !matches!(mode, Mode::CutWithin(_)) {
                allowance = None;
            }
        }
    }

    async fn carry_down(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, muzzle: &Muzzle) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
            if muzzle.0.load(Ordering::SeqCst) {
                return;
            }
            if let Mode::Delay(pause) =
                self.passage(|mode| matches!(mode, Mode::Stall { down: true, .. })).await
            {
                tokio::time::sleep(pause).await;
            }
            if to.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    }

    /// The mode, once it is not one that `stalls` this direction.
    async fn passage(&self, stalls: impl Fn(&Mode) -> bool) -> Mode {
        let mut mode = self.mode.subscribe();
        // The sender lives as long as this value.
        mode.wait_for(|mode| !stalls(mode)).await.map_or(Mode::Pass, |mode| *mode)
    }

    fn chance<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.chance.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::time::timeout;

    /// A server that answers each byte with the next one.
    async fn echo(tasks: &Tasks) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tasks.clone();
        tasks.spawn("echo", async move {
            while let Some(Ok((mut stream, _))) =
                serving.shutdown().clone().run_until_cancelled(listener.accept()).await
            {
                let stop = serving.shutdown().clone();
                serving.spawn("echoing", async move {
                    let work = async {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).await.is_ok() {
                            byte[0] += 1;
                            if stream.write_all(&byte).await.is_err() {
                                return;
                            }
                        }
                    };
                    stop.run_until_cancelled(work).await;
                });
            }
        });
        address
    }

    async fn link(tasks: &Tasks) -> Link {
        let target = echo(tasks).await;
        Link::open(target, Protocol::Opaque, 7, Arc::default(), tasks).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> Option<u8> {
        stream.write_all(&[byte]).await.ok()?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer[0])
    }

    #[tokio::test]
    async fn what_a_stall_held_back_passes_when_it_is_over() {
        let tasks = Tasks::default();
        let link = link(&tasks).await;
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        for mode in [Mode::Stall { up: true, down: false }, Mode::Stall { up: false, down: true }] {
            link.set(mode);
            stream.write_all(&[10]).await.unwrap();
            let mut answer = [0];
            timeout(Duration::from_millis(50), stream.read_exact(&mut answer)).await.unwrap_err();
            link.set(Mode::Pass);
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [11]);
        }
        tasks.stop().await;
    }

    #[tokio::test]
    async fn cuts_refusals_and_delays_are_felt_and_end() {
        let tasks = Tasks::default();
        let link = link(&tasks).await;
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        link.cut();
        assert_eq!(ask(&mut stream, 1).await, None);
        link.set(Mode::Refuse);
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, None);
        link.set(Mode::CutWithin(3));
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        let mut answered = 0;
        while ask(&mut stream, 1).await.is_some() {
            answered += 1;
        }
        assert!(answered <= 3, "{answered}");
        link.set(Mode::Delay(Duration::from_millis(40)));
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        let asked = Instant::now();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        assert!(asked.elapsed() >= Duration::from_millis(80), "both ways");
        link.set(Mode::Pass);
        assert_eq!(ask(&mut stream, 5).await, Some(6));
        tasks.stop().await;
    }
}
