//! Queues of one kind of message and those who read them, under one lock.
//!
//! A reader holds copies of what it has out, so that a delivery dropped or a reader gone gives them back in their old
//! order. The lock is never held across an await.

use super::{DeadLetters, Named, dead};
use crate::{
    broker::{Delivery, Settle, Source},
    wire::Message,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a message counts against its queue's bound.
pub(super) trait Burden {
    fn weight(&self) -> usize;
}

/// What a key and a message must be able to do.
pub(super) trait Key: Named + Clone + Eq + Hash + Send + Sync + 'static {}
impl<K: Named + Clone + Eq + Hash + Send + Sync + 'static> Key for K {}
pub(super) trait Body: Burden + Message + Clone {}
impl<T: Burden + Message + Clone> Body for T {}

#[derive(Clone)]
struct Letter<T> {
    body: T,
    redelivered: bool,
}

struct Queue<T> {
    letters: VecDeque<Letter<T>>,
    weight: usize,
}

impl<T: Burden> Queue<T> {
    fn push_back(&mut self, letter: Letter<T>) {
        self.weight += letter.body.weight();
        self.letters.push_back(letter);
    }

    fn push_front(&mut self, letter: Letter<T>) {
        self.weight += letter.body.weight();
        self.letters.push_front(letter);
    }

    fn pop_front(&mut self) -> Option<Letter<T>> {
        let letter = self.letters.pop_front()?;
        self.weight -= letter.body.weight();
        Some(letter)
    }
}

/// Names a reader.
type ReaderId = u64;
/// The place of a delivery among those of its reader.
type Tag = u64;

struct Reader<K, T> {
    keys: Vec<K>,
    /// What it has out and has not settled, by tag.
    out: BTreeMap<Tag, (K, Letter<T>)>,
    last_tag: Tag,
    /// The queue to look into first, so that a busy one does not starve the others.
    next_key: usize,
}

struct State<K, T> {
    queues: HashMap<K, Queue<T>>,
    readers: HashMap<ReaderId, Reader<K, T>>,
    last_reader: ReaderId,
}

impl<K: Key, T: Body> State<K, T> {
    fn queue(&mut self, key: &K) -> &mut Queue<T> {
        self.queues.entry(key.clone()).or_insert_with(|| Queue { letters: VecDeque::new(), weight: 0 })
    }

    fn is_read(&self, key: &K) -> bool {
        self.readers.values().any(|reader| reader.keys.contains(key))
    }

    /// Gives `(key, letter)` back, to be read before anything that waits.
    fn give_back(&mut self, (key, mut letter): (K, Letter<T>)) {
        letter.redelivered = true;
        self.queue(&key).push_front(letter);
    }
}

/// There is no room, or the broker is closed.
pub(super) struct Refused;

/// Queues of one kind of message.
pub(super) struct Lane<K, T> {
    state: Mutex<State<K, T>>,
    /// Most weight waiting in one queue.
    bound: usize,
    /// A message came (back), or a reader may take one more.
    arrived: Notify,
    /// A message was taken.
    room: Notify,
    dead: DeadLetters,
    closed: CancellationToken,
}

impl<K: Key, T: Body> Lane<K, T> {
    pub(super) fn new(bound: usize, dead: DeadLetters, closed: CancellationToken) -> Self {
        let state = State { queues: HashMap::new(), readers: HashMap::new(), last_reader: 0 };
        Self { state: Mutex::new(state), bound, arrived: Notify::new(), room: Notify::new(), dead, closed }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in its queue, if there is room.
    pub(super) fn offer(&self, key: &K, body: T) -> Result<(), Refused> {
        self.try_put(key, body).map_err(|_| Refused)
    }

    /// Puts a message in its queue, waiting for room; an error only when the broker is closed.
    pub(super) async fn put(&self, key: K, mut body: T) -> Result<(), Refused> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Counts from here on: room made between the look and the wait is not missed.
            room.as_mut().enable();
            if self.closed.is_cancelled() {
                return Err(Refused);
            }
            body = match self.try_put(&key, body) {
                Ok(()) => return Ok(()),
                Err(body) => body,
            };
            tokio::select! {
                biased;
                () = room => {}
                () = self.closed.cancelled() => return Err(Refused),
            }
        }
    }

    fn try_put(&self, key: &K, body: T) -> Result<(), T> {
        let mut state = self.lock();
        let queue = state.queue(key);
        // A message heavier than the bound still fits into an empty queue.
        if queue.weight > 0 && queue.weight + body.weight() > self.bound {
            return Err(body);
        }
        queue.push_back(Letter { body, redelivered: false });
        drop(state);
        self.arrived.notify_waiters();
        Ok(())
    }

    /// Whether anyone reads the queue.
    pub(super) fn is_read(&self, key: &K) -> bool {
        self.lock().is_read(key)
    }

    /// Messages waiting in the queue; those out are not counted.
    pub(super) fn waiting(&self, key: &K) -> u64 {
        self.lock().queues.get(key).map_or(0, |queue| queue.letters.len() as u64)
    }

    /// A reader of the queues `keys` with at most `prefetch` messages out.
    pub(super) fn read(self: &Arc<Self>, keys: Vec<K>, prefetch: u16) -> Reading<K, T> {
        let mut state = self.lock();
        state.last_reader += 1;
        let id = state.last_reader;
        let reader = Reader { keys, out: BTreeMap::new(), last_tag: 0, next_key: 0 };
        state.readers.insert(id, reader);
        Reading { lane: self.clone(), id, prefetch: usize::from(prefetch.max(1)) }
    }

    fn take(&self, id: ReaderId, prefetch: usize) -> Option<(Tag, Letter<T>)> {
        let mut state = self.lock();
        let State { queues, readers, .. } = &mut *state;
        let reader = readers.get_mut(&id)?;
        if reader.out.len() >= prefetch {
            return None;
        }
        let keys = reader.keys.len();
        for place in (reader.next_key..keys).chain(0..reader.next_key) {
            let key = &reader.keys[place];
            let Some(letter) = queues.get_mut(key).and_then(Queue::pop_front) else { continue };
            reader.next_key = (place + 1) % keys;
            reader.last_tag += 1;
            let tag = reader.last_tag;
            reader.out.insert(tag, (key.clone(), letter.clone()));
            drop(state);
            self.room.notify_waiters();
            return Some((tag, letter));
        }
        None
    }

    /// Takes what is settled off the reader's hands: the one, or everything up to it.
    fn settled(&self, id: ReaderId, tag: Tag, through: bool) -> Vec<(K, Letter<T>)> {
        let mut state = self.lock();
        let Some(reader) = state.readers.get_mut(&id) else { return Vec::new() };
        let done = if through {
            let later = reader.out.split_off(&(tag + 1));
            std::mem::replace(&mut reader.out, later).into_values().collect()
        } else {
            reader.out.remove(&tag).into_iter().collect()
        };
        drop(state);
        self.arrived.notify_waiters();
        done
    }

    fn retry(&self, id: ReaderId, tag: Tag) {
        for letter in self.settled(id, tag, false) {
            self.lock().give_back(letter);
        }
        self.arrived.notify_waiters();
    }

    fn leave(&self, id: ReaderId) {
        let mut state = self.lock();
        let Some(reader) = state.readers.remove(&id) else { return };
        for letter in reader.out.into_values().rev() {
            state.give_back(letter);
        }
        for key in reader.keys {
            if key.is_readers_own() && !state.is_read(&key) {
                state.queues.remove(&key);
            }
        }
        drop(state);
        self.arrived.notify_waiters();
    }
}

/// A reader's half of a subscription.
pub(super) struct Reading<K: Key, T: Body> {
    lane: Arc<Lane<K, T>>,
    id: ReaderId,
    prefetch: usize,
}

impl<K: Key, T: Body> Reading<K, T> {
    fn take(&self) -> Option<Delivery<T>> {
        let (tag, letter) = self.lane.take(self.id, self.prefetch)?;
        let settle = Out { lane: self.lane.clone(), reader: self.id, tag, settled: false };
        Some(Delivery::new(letter.body, letter.redelivered, Box::new(settle)))
    }
}

#[async_trait]
impl<K: Key, T: Body> Source<T> for Reading<K, T> {
    async fn next(&mut self) -> Option<Delivery<T>> {
        loop {
            if self.lane.closed.is_cancelled() {
                return None;
            }
            if let Some(delivery) = self.take() {
                return Some(delivery);
            }
            let lane = self.lane.clone();
            let arrived = lane.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            // Looked again after the wait has begun to count: what came in between is not missed.
            if let Some(delivery) = self.take() {
                return Some(delivery);
            }
            tokio::select! {
                biased;
                () = arrived => {}
                () = lane.closed.cancelled() => return None,
            }
        }
    }
}

impl<K: Key, T: Body> Drop for Reading<K, T> {
    fn drop(&mut self) {
        self.lane.leave(self.id);
    }
}

/// One delivery that is out.
struct Out<K: Key, T: Body> {
    lane: Arc<Lane<K, T>>,
    reader: ReaderId,
    tag: Tag,
    settled: bool,
}

#[async_trait]
impl<K: Key, T: Body> Settle for Out<K, T> {
    async fn ack(mut self: Box<Self>, through: bool) {
        self.settled = true;
        self.lane.settled(self.reader, self.tag, through);
    }

    async fn retry(mut self: Box<Self>) {
        self.settled = true;
        self.lane.retry(self.reader, self.tag);
    }

    async fn reject(mut self: Box<Self>, why: String) {
        self.settled = true;
        for (key, letter) in self.lane.settled(self.reader, self.tag, false) {
            self.lane.dead.bury(dead(&key, letter.body, why.clone()));
        }
    }
}

impl<K: Key, T: Body> Drop for Out<K, T> {
    fn drop(&mut self) {
        if !self.settled {
            self.lane.retry(self.reader, self.tag);
        }
    }
}
