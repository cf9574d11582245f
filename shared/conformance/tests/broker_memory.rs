//! The broker of one process keeps the contract of every broker.

use async_trait::async_trait;
use jobgate_conformance::broker::Stage;
use jobgate_shared::broker::{Broker, memory::Memory};
use std::sync::Arc;

struct One(Memory);

#[async_trait]
impl Stage for One {
    fn process(&self, _name: &str) -> Arc<dyn Broker> {
        Arc::new(self.0.clone())
    }

    async fn dead_letters(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.0.dead_letters().into_iter().map(|letter| letter.why).collect())
    }
}

jobgate_conformance::broker_conformance!(async || anyhow::Ok(One(Memory::new())));
