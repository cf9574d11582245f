//! A simulated process: what stands between a role and everything outside it.
//!
//! Every call of a role goes through [`Process::carry`], so that the process can be killed (its calls never return; what
//! was on its way lands or not), stand still (its calls wait until it thaws, and what it had decided happens then) or be
//! cut off. Its tasks go on until the runtime is dropped: nothing they do is seen.

use crate::{
    plan::{Fault, Link},
    world::{Fate, RunClock, World, lock},
};
use chrono::TimeDelta;
use futures::future::BoxFuture;
use jobgate_shared::{broker::BrokerHealth, clock::Clock, supervise::Tasks};
use std::{
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Runs,
    Frozen,
    Dead,
}

/// A subscription of a process, which goes with its connection.
pub(crate) trait Line: Send + Sync {
    /// The connection is gone: what nobody settled comes again.
    fn hang_up(&self);
    /// There is a connection again.
    fn dial(&self);
}

/// One process.
pub(crate) struct Process {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    /// Its own idea of the time.
    pub(crate) clock: Arc<dyn Clock>,
    /// What runs in it.
    pub(crate) tasks: Tasks,
    standing: Mutex<Standing>,
    moved: Notify,
    cut: [AtomicBool; 3],
    lines: Mutex<Vec<Weak<dyn Line>>>,
    healths: Mutex<Vec<watch::Sender<BrokerHealth>>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Process {
    pub(crate) fn new(world: &Arc<World>, name: String) -> Arc<Self> {
        let mut skew = TimeDelta::zero();
        if world.strikes(Fault::Skew) || world.plan.has(Fault::Skew) && world.dice().chance(500) {
            world.struck(Fault::Skew);
            let minutes = world.dice().below(21);
            skew = TimeDelta::minutes(i64::try_from(minutes).unwrap_or(0) - 10);
        }
        world.say(|| format!("{name} begins, its clock {} s ahead", skew.num_seconds()));
        Arc::new(Self {
            clock: RunClock::new(world, skew),
            world: world.clone(),
            name,
            tasks: Tasks::default(),
            standing: Mutex::new(Standing::Runs),
            moved: Notify::new(),
            cut: Default::default(),
            lines: Mutex::default(),
            healths: Mutex::default(),
        })
    }

    fn standing(&self) -> Standing {
        *lock(&self.standing)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.standing() == Standing::Runs
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.standing() == Standing::Dead
    }

    pub(crate) fn is_cut(&self, link: Link) -> bool {
        self.cut[link as usize].load(Ordering::SeqCst)
    }

    /// Returns once the process runs; never, if it is dead.
    pub(crate) async fn awake(&self) {
        loop {
            let moved = self.moved.notified();
            match self.standing() {
                Standing::Runs => return,
                Standing::Frozen => moved.await,
                Standing::Dead => std::future::pending().await,
            }
        }
    }

    fn stand(&self, standing: Standing) {
        let mut stands = lock(&self.standing);
        if *stands != Standing::Dead {
            *stands = standing;
        }
        drop(stands);
        self.moved.notify_waiters();
    }

    pub(crate) fn kill(&self) {
        self.world.say(|| format!("{} is killed", self.name));
        self.stand(Standing::Dead);
        self.lines(|line| line.hang_up());
    }

    pub(crate) fn freeze(&self) {
        self.world.say(|| format!("{} stands still", self.name));
        self.stand(Standing::Frozen);
    }

    pub(crate) fn thaw(&self) {
        if self.standing() == Standing::Frozen {
            self.world.say(|| format!("{} goes on", self.name));
            self.stand(Standing::Runs);
        }
    }

    pub(crate) fn set_cut(&self, link: Link, cut: bool) {
        if self.cut[link as usize].swap(cut, Ordering::SeqCst) == cut {
            return;
        }
        self.world
            .say(|| format!("{}: {link:?} {}", self.name, if cut { "cut off" } else { "reached again" }));
        if link == Link::Broker && cut {
            self.set_broker(BrokerHealth::Down);
        }
    }

    /// The connection to the broker comes or goes.
    pub(crate) fn set_broker(&self, health: BrokerHealth) {
        match health {
            BrokerHealth::Down => self.lines(|line| line.hang_up()),
            BrokerHealth::Up | BrokerHealth::Blocked if self.is_dead() || self.is_cut(Link::Broker) => return,
            BrokerHealth::Up | BrokerHealth::Blocked => self.lines(|line| line.dial()),
        }
        for told in lock(&self.healths).iter() {
            told.send_replace(health);
        }
    }

    /// The connection to the broker is lost and there is another one at once.
    pub(crate) fn reconnect(&self) {
        if !self.is_dead() && !self.is_cut(Link::Broker) {
            self.world.say(|| format!("{} reconnects", self.name));
            self.lines(|line| {
                line.hang_up();
                line.dial();
            });
        }
    }

    fn lines(&self, each: impl Fn(&dyn Line)) {
        let lines: Vec<Arc<dyn Line>> = lock(&self.lines).iter().filter_map(Weak::upgrade).collect();
        for line in lines {
            each(&*line);
        }
    }

    pub(crate) fn add_line(&self, line: Weak<dyn Line>) {
        let mut lines = lock(&self.lines);
        lines.retain(|known| known.strong_count() > 0);
        lines.push(line);
    }

    /// One receiver for each caller: several at one sender would be woken in an order that chance decides.
    pub(crate) fn health(&self, now: BrokerHealth) -> watch::Receiver<BrokerHealth> {
        let (told, heard) = watch::channel(now);
        lock(&self.healths).push(told);
        heard
    }

    /// Carries a call to where it is answered and the answer back; `None` when nobody answers.
    pub(crate) async fn carry<T: Send + 'static>(
        &self,
        link: Link,
        call: BoxFuture<'static, T>,
    ) -> Option<T> {
        self.awake().await;
        match self.world.fate(link, self.is_cut(link)) {
            Fate::Through { there, back } => {
                self.travel(there).await;
                let answer = call.await;
                rest(back).await;
                self.awake().await;
                Some(answer)
            }
            Fate::LostThere { wait } => {
                rest(wait).await;
                self.awake().await;
                None
            }
            Fate::LostBack { there, wait } => {
                self.travel(there).await;
                call.await;
                rest(wait).await;
                self.awake().await;
                None
            }
            Fate::Late { by, wait } => {
                self.world.later(by, Box::pin(async move { drop(call.await) }));
                rest(wait).await;
                self.awake().await;
                None
            }
        }
    }

    /// On the way there. Whose sender dies meanwhile may arrive or not.
    async fn travel(&self, there: Duration) {
        rest(there).await;
        if self.is_dead() && self.world.dice().chance(500) {
            std::future::pending::<()>().await;
        }
    }
}

async fn rest(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
