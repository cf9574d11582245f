//! The feed of changes inside one process: one poller over the store, many listeners.
//!
//! The poller runs only while somebody listens, reads when poked and every [`FALLBACK`] otherwise. A listener knows how
//! far it has come; whatever it misses here (it lagged, or came before the poller) it reads from the store itself, so
//! every listener sees every change in commit order, whatever was poked or lost.

use jobgate_shared::{
    domain::JobId,
    store::{Changes, FeedCursor, JobChange, Store, StoreResult},
    supervise::Tasks,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, broadcast};

/// How long a change nobody was poked for stays unseen at most.
pub const FALLBACK: Duration = Duration::from_millis(500);
/// How long the poller rests after a read, so that a busy store is not asked for every single change.
const REST: Duration = Duration::from_millis(20);
/// Most changes of one read.
const READ: u32 = 500;
/// Reads kept for a slow listener before it must read for itself.
const KEPT: usize = 64;

/// A stretch of the feed: everything after `from` up to the cursor of the last item.
#[derive(Debug)]
struct Stretch {
    from: FeedCursor,
    changes: Changes,
}

/// What one process knows of the feed.
#[derive(Debug)]
pub struct Feed {
    store: Arc<dyn Store>,
    tasks: Tasks,
    poke: Notify,
    stretches: broadcast::Sender<Arc<Stretch>>,
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    /// Open [`Listener`]s.
    open: usize,
    /// Who waits for a single job, each with how many.
    watched: HashMap<JobId, (Arc<Notify>, usize)>,
    polling: bool,
}

impl Feed {
    /// Nothing is read until somebody listens.
    pub fn new(store: Arc<dyn Store>, tasks: Tasks) -> Arc<Self> {
        let (stretches, _) = broadcast::channel(KEPT);
        Arc::new(Self { store, tasks, poke: Notify::new(), stretches, listeners: Mutex::default() })
    }

    /// The store holds something new.
    pub fn poke(&self) {
        self.poke.notify_one();
    }

    /// Everything after `after`; from now on when absent.
    pub async fn listen(self: &Arc<Self>, after: Option<FeedCursor>) -> StoreResult<Listener> {
        // Listening first: what is committed after the end was read cannot be missed.
        let stretches = self.stretches.subscribe();
        self.listeners().open += 1;
        let mut listener = Listener {
            feed: self.clone(),
            stretches,
            at: FeedCursor::default(),
            behind: after.is_some(),
            ready: VecDeque::new(),
        };
        listener.at = match after {
            Some(after) => after,
            None => self.store.feed_end().await?,
        };
        self.ensure_polling();
        Ok(listener)
    }

    /// Tells when `job` may have changed. Read the job after calling this and after every turn of
    /// [`Watch::changed`].
    pub fn watch(self: &Arc<Self>, job: JobId) -> Watch {
        let mut listeners = self.listeners();
        let (changed, watchers) = listeners.watched.entry(job).or_default();
        *watchers += 1;
        let changed = changed.clone();
        drop(listeners);
        self.ensure_polling();
        Watch { feed: self.clone(), job, changed }
    }

    fn ensure_polling(self: &Arc<Self>) {
        let mut listeners = self.listeners();
        if !listeners.polling {
            listeners.polling = true;
            drop(listeners);
            self.tasks.spawn("feed", self.clone().poll());
        }
    }

    /// Reads on until nobody listens. A store that is away is asked again: listeners only see that nothing comes.
    async fn poll(self: Arc<Self>) {
        // Should this end by a panic, the next listener begins anew.
        let mut polling = Polling { feed: &self, ended: false };
        let mut at = None;
        loop {
            let full = match self.read(at).await {
                Ok((end, full)) => {
                    at = Some(end);
                    full
                }
                Err(error) => {
                    tracing::debug!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "the feed cannot be read"
                    );
                    false
                }
            };
            if self.stop_if_alone() {
                polling.ended = true;
                return;
            }
            if full {
                continue;
            }
            tokio::select! {
                () = self.tasks.shutdown().cancelled() => return,
                () = tokio::time::sleep(REST) => {}
            }
            tokio::select! {
                () = self.tasks.shutdown().cancelled() => return,
                () = self.poke.notified() => {}
                () = tokio::time::sleep(FALLBACK) => {}
            }
        }
    }

    /// One read and its telling; answers where it ended and whether there is probably more.
    async fn read(&self, at: Option<FeedCursor>) -> StoreResult<(FeedCursor, bool)> {
        let Some(from) = at else {
            let end = self.store.feed_end().await?;
            // Whoever came before this end was known must look for himself.
            drop(self.stretches.send(Arc::new(Stretch { from: end, changes: Changes::default() })));
            self.wake_all_watchers();
            return Ok((end, false));
        };
        let (changes, end) = self.after(from).await?;
        let full = changes.items.len() >= READ as usize;
        if changes.gap {
            self.wake_all_watchers();
        } else {
            let listeners = self.listeners();
            for (_, change) in &changes.items {
                if let Some((changed, _)) = listeners.watched.get(&change.job) {
                    changed.notify_waiters();
                }
            }
        }
        if changes.gap || !changes.items.is_empty() {
            // Nobody listening is no failure: then only single jobs are watched.
            drop(self.stretches.send(Arc::new(Stretch { from, changes })));
        }
        Ok((end, full))
    }

    /// What follows `from`, and where whoever has heard it stands.
    async fn after(&self, from: FeedCursor) -> StoreResult<(Changes, FeedCursor)> {
        let changes = self.store.changes(from, READ).await?;
        let end = match changes.items.last() {
            Some((cursor, _)) => *cursor,
            // Nothing may ever follow `from`: a store restored or made anew counts from the beginning.
            None if changes.gap => self.store.feed_end().await?,
            None => from,
        };
        Ok((changes, end))
    }

    fn wake_all_watchers(&self) {
        for (changed, _) in self.listeners().watched.values() {
            changed.notify_waiters();
        }
    }

    fn stop_if_alone(&self) -> bool {
        let mut listeners = self.listeners();
        let alone = listeners.open == 0 && listeners.watched.is_empty();
        if alone {
            listeners.polling = false;
        }
        alone
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The poller, as the listeners see it.
struct Polling<'a> {
    feed: &'a Feed,
    /// It said so itself; another may be polling by now.
    ended: bool,
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.feed.listeners().polling = false;
        }
    }
}

/// One listener to everything.
#[derive(Debug)]
pub struct Listener {
    feed: Arc<Feed>,
    stretches: broadcast::Receiver<Arc<Stretch>>,
    at: FeedCursor,
    /// Something after `at` may never come through `stretches`.
    behind: bool,
    /// What was read after `at` and not heard yet.
    ready: VecDeque<Heard>,
}

/// What a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A change, and where the listener stands after it.
    Change(FeedCursor, Arc<JobChange>),
    /// Changes between what was heard before and what comes next are no longer kept.
    Gap(FeedCursor),
}

impl Listener {
    /// Where it stands: everything before was heard, or was not meant for it.
    pub fn at(&self) -> FeedCursor {
        self.at
    }

    /// The next thing to hear; waits for it. Ends only with the process's tasks. Cancel safe.
    pub async fn next(&mut self) -> StoreResult<Heard> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                match &heard {
                    Heard::Change(cursor, _) => self.at = *cursor,
                    Heard::Gap(_) => {}
                }
                return Ok(heard);
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            match self.stretches.recv().await {
                Ok(stretch) if stretch.from > self.at || stretch.changes.gap => self.behind = true,
                Ok(stretch) => self.take(&stretch.changes),
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                // The feed holds the sender, and this holds the feed.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    async fn catch_up(&mut self) -> StoreResult<()> {
        let (changes, end) = self.feed.after(self.at).await?;
        self.behind = changes.items.len() >= READ as usize;
        if changes.gap {
            self.ready.push_back(Heard::Gap(self.at));
        }
        self.take(&changes);
        // Otherwise each of the changes takes it on as it is heard.
        if changes.items.is_empty() {
            self.at = end;
        }
        Ok(())
    }

    fn take(&mut self, changes: &Changes) {
        for (cursor, change) in &changes.items {
            if *cursor > self.at {
                self.ready.push_back(Heard::Change(*cursor, Arc::new(change.clone())));
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.feed.listeners().open -= 1;
    }
}

/// One who waits for one job.
#[derive(Debug)]
pub struct Watch {
    feed: Arc<Feed>,
    job: JobId,
    changed: Arc<Notify>,
}

impl Watch {
    /// Completes at the first change after the returned future was made; make it before reading the job.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut listeners = self.feed.listeners();
        if let Some((_, watchers)) = listeners.watched.get_mut(&self.job) {
            *watchers -= 1;
            if *watchers == 0 {
                listeners.watched.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests;
