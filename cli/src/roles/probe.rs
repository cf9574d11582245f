//! Whether a role without an HTTP interface can do its work, from before there is a store on.

use super::doors::Doors;
use async_trait::async_trait;
use jobgate_api::http::{
    StoreProbe,
    ops::{Probe, Readiness},
};
use std::sync::{Arc, OnceLock};

/// Asks what the role works with; before there is a store it says what is waited for.
#[derive(Debug, Clone, Default)]
pub(super) struct DoorsProbe(Arc<OnceLock<StoreProbe>>);

impl DoorsProbe {
    /// The role has begun on these doors.
    pub(super) fn open(&self, doors: &Doors) {
        // A role begins once; a second set would change nothing.
        self.0.get_or_init(|| StoreProbe::new(doors.store.clone(), doors.broker.health()));
    }
}

#[async_trait]
impl Probe for DoorsProbe {
    async fn readiness(&self) -> Readiness {
        match self.0.get() {
            Some(probe) => probe.readiness().await,
            None => Readiness::Unready { reason: "the database is waited for".to_owned() },
        }
    }
}
