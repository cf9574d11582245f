//! What housekeeping and readers of counts and of the feed call.

use super::{
    pair::{Pair, Pick},
    producing::ENDED,
};
use anyhow::Result;
use jobgate_shared::store::{Depth, FullStore};
use proptest::{prelude::*, sample::select};

#[derive(Debug, Clone)]
pub(super) enum Keeping {
    Present { jobs: Vec<Pick> },
    Retirable { before: i64, limit: u32 },
    Retire { jobs: Vec<Pick>, before: i64 },
    RetireFeed { before: i64 },
    Depths,
    CompactCounts,
    Changes { after: u8, limit: u32 },
    FeedEnd,
}

impl Keeping {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let before = || select(&[-3_600, -1, 0, 1, 7_200][..]);
        prop_oneof![
            1 => Pick::some().prop_map(|jobs| Self::Present { jobs }),
            2 => (before(), select(&[0, 1, 2, 100][..]))
                .prop_map(|(before, limit)| Self::Retirable { before, limit }),
            2 => (Pick::some(), before()).prop_map(|(jobs, before)| Self::Retire { jobs, before }),
            2 => before().prop_map(|before| Self::RetireFeed { before }),
            1 => Just(Self::Depths),
            2 => Just(Self::CompactCounts),
            3 => (any::<u8>(), select(&[0, 1, 2, 5, 100][..]))
                .prop_map(|(after, limit)| Self::Changes { after, limit }),
            1 => Just(Self::FeedEnd),
        ]
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::Present { jobs } => {
                let jobs = pair.jobs(jobs, ENDED).await?;
                pair.both(async |store| store.present(&jobs).await).await.map(drop)
            }
            Self::Retirable { before, limit } => {
                let before = pair.at(*before);
                pair.both(async |store| store.retirable(before, *limit).await).await.map(drop)
            }
            Self::Retire { jobs, before } => {
                let (jobs, before) = (pair.jobs(jobs, ENDED).await?, pair.at(*before));
                pair.both(async |store| store.retire(&jobs, before).await).await.map(drop)
            }
            Self::RetireFeed { before } => {
                // What goes is read before.
                pair.follow().await?;
                let before = pair.at(*before);
                pair.both(async |store| store.retire_feed(before).await).await.map(drop)
            }
            Self::Depths => depths(pair).await.map(drop),
            Self::CompactCounts => pair.both(async |store| store.compact_counts().await).await.map(drop),
            Self::Changes { after, limit } => pair.read_again(*after, *limit).await,
            Self::FeedEnd => pair.feed_end().await,
        }
    }
}

/// The port promises them in no order.
pub(super) async fn depths(pair: &Pair<'_>) -> Result<Vec<Depth>> {
    let sorted = async |store: &dyn FullStore| {
        let mut depths = store.depths().await?;
        depths.sort_unstable();
        Ok(depths)
    };
    pair.both(sorted).await
}
