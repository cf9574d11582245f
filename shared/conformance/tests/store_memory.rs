//! The reference model of the store keeps the contract it is the reference of.

use async_trait::async_trait;
use jobgate_conformance::store::Stage;
use jobgate_shared::{
    clock::{Clock as _, ManualClock, SystemClock},
    store::{FullStore, memory::MemoryStore},
};
use std::{sync::Arc, time::Duration};

struct Memory {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

#[async_trait]
impl Stage for Memory {
    fn store(&self) -> Arc<dyn FullStore> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn close(&self) {}
}

fn memory() -> Memory {
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    Memory { store: Arc::new(MemoryStore::new(clock.clone())), clock }
}

jobgate_conformance::store_conformance!(async || anyhow::Ok(memory()));
