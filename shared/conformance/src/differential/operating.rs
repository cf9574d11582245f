//! What operators call, pauses, limits and tokens; and what they cause workers to ask.

use super::{
    pair::Pair,
    producing::{CLUSTERS, PROJECTS, name, scope},
};
use anyhow::Result;
use jobgate_shared::domain::{ClusterName, TokenId};
use jobgate_shared::store::{Role, Scope, Token};
use proptest::{option, prelude::*, sample::select, sample::subsequence};

const ROLES: &[Role] = &[Role::Read, Role::Submit, Role::Cancel, Role::Admin, Role::Work];

#[derive(Debug, Clone)]
pub(super) enum Operating {
    SetPaused {
        cluster: &'static str,
        paused: bool,
        by: &'static str,
    },
    Limit {
        cluster: &'static str,
        max_in_flight: Option<u32>,
    },
    ClusterSettings,
    Serving(&'static str),
    /// A new token, or another under a known id.
    CreateToken {
        again: Option<u8>,
        tie: u8,
        project: Option<&'static str>,
        cluster: Option<&'static str>,
        roles: Vec<Role>,
        expires_in: Option<i64>,
    },
    Tokens(Scope),
    Token(u8),
    RevokeToken(Scope, u8),
}

impl Operating {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let set = (select(CLUSTERS), any::<bool>(), select(&["token:a", "token:b"][..]));
        let limit = (select(CLUSTERS), option::of(0u32..6));
        let token = (
            option::weighted(0.2, any::<u8>()),
            any::<u8>(),
            option::of(select(PROJECTS)),
            option::of(select(CLUSTERS)),
            subsequence(ROLES, 0..=2),
            option::of(select(&[-1, 3_600][..])),
        );
        prop_oneof![
            3 => set.prop_map(|(cluster, paused, by)| Self::SetPaused { cluster, paused, by }),
            3 => limit.prop_map(|(cluster, max_in_flight)| Self::Limit { cluster, max_in_flight }),
            1 => Just(Self::ClusterSettings),
            1 => select(CLUSTERS).prop_map(Self::Serving),
            2 => token.prop_map(|(again, tie, project, cluster, roles, expires_in)| Self::CreateToken {
                again, tie, project, cluster, roles, expires_in
            }),
            1 => scope().prop_map(Self::Tokens),
            1 => any::<u8>().prop_map(Self::Token),
            1 => (scope(), any::<u8>()).prop_map(|(scope, nth)| Self::RevokeToken(scope, nth)),
        ]
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::SetPaused { cluster, paused, by } => {
                let cluster: ClusterName = name(cluster);
                pair.both(async |store| store.set_paused(&cluster, *paused, by).await).await
            }
            Self::Limit { cluster, max_in_flight } => {
                let cluster: ClusterName = name(cluster);
                pair.both(async |store| store.limit(&cluster, *max_in_flight, "token:l").await).await
            }
            Self::ClusterSettings => cluster_settings(pair).await,
            Self::Serving(cluster) => {
                let clusters: [ClusterName; 2] = [name(cluster), name("local")];
                pair.both(async |store| store.serving(&clusters).await).await.map(drop)
            }
            Self::CreateToken { again, tie, project, cluster, roles, expires_in } => {
                let id = again.and_then(|nth| nth_token(pair, nth));
                let token = Token {
                    id: id.unwrap_or_else(|| TokenId(pair.new_id(*tie))),
                    name: format!("token {tie}"),
                    project: project.map(name),
                    cluster: cluster.map(name),
                    roles: roles.clone(),
                    secret_sha256: [*tie; 32],
                    created_by: "token:t".into(),
                    created_at: pair.now(),
                    expires_at: expires_in.map(|seconds| pair.at(seconds)),
                };
                if !pair.tokens.contains(&token.id) {
                    pair.tokens.push(token.id);
                }
                pair.both(async |store| store.create_token(&token).await).await
            }
            Self::Tokens(scope) => pair.both(async |store| store.tokens(scope).await).await.map(drop),
            Self::Token(nth) => {
                let Some(token) = nth_token(pair, *nth) else { return Ok(()) };
                pair.both(async |store| store.token(token).await).await.map(drop)
            }
            Self::RevokeToken(scope, nth) => {
                let Some(token) = nth_token(pair, *nth) else { return Ok(()) };
                pair.both(async |store| store.revoke_token(scope, token).await).await.map(drop)
            }
        }
    }
}

fn nth_token(pair: &Pair<'_>, nth: u8) -> Option<TokenId> {
    pair.tokens.get(usize::from(nth) % pair.tokens.len().max(1)).copied()
}

/// The port promises them in no order.
pub(super) async fn cluster_settings(pair: &Pair<'_>) -> Result<()> {
    let sorted = async |store: &dyn jobgate_shared::store::FullStore| {
        let mut settings = store.cluster_settings().await?;
        settings.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        Ok(settings)
    };
    pair.both(sorted).await.map(drop)
}
