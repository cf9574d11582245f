//! Who asks, and what they may do: tokens, roles and the cache that keeps the store out of every request.
//!
//! A token read from the store is believed for [`TRUST`]; a nudge, by [`Authority::doubt`], ends that at once. Only who
//! watches the gateway, or has a stream open already, is believed longer while the store is away, for [`OUTAGE_TRUST`],
//! whatever was nudged before. Knows no HTTP: what a failure looks like to a client is decided there.

mod token;

use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, Project, TokenId},
    store::{Role, Scope, Store, StoreError, Token},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use subtle::ConstantTimeEq as _;
use token::Presented;
use tokio::{sync::Semaphore, time::Instant};

/// How long a token is believed after it was read: a revocation is in force everywhere after that.
pub const TRUST: Duration = Duration::from_secs(5);
/// How long a token that was good when it was last read lets its holder watch while the store is away: an outage is what
/// metrics are for.
const OUTAGE_TRUST: Duration = Duration::from_hours(24);
/// How long such a holder waits for a store that may be away.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(1);
/// How often a token is asked about that holds something open: its end closes that after so long and [`TRUST`] at most.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// After so long one of the requests that use a token reads it anew, and the others do not wait for it.
const REFRESH_AFTER: Duration = Duration::from_secs(2);
/// Most tokens remembered, known and unknown.
const MAX_REMEMBERED: usize = 10_000;
/// Most reads of tokens at once: made-up ids must not take the store from those who have work for it.
const MAX_LOOKUPS: usize = 16;
/// Shortest text accepted as a configured administrator's token that is not of our own making.
pub const MIN_BOOTSTRAP_LENGTH: usize = 32;

/// What the configured administrator's token is called in histories; no other may be.
pub const BOOTSTRAP: &str = "bootstrap";

/// Whoever made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// For the history: `token:<name>`.
    pub by: String,
    /// The one project it sees; every project when absent.
    pub project: Option<Project>,
    /// The one cluster it works for, if it works for one.
    pub cluster: Option<ClusterName>,
    /// What it may do.
    pub roles: Vec<Role>,
}

impl Principal {
    /// It may do what `needed` stands for.
    pub fn may(&self, needed: Role) -> bool {
        self.roles.iter().any(|role| includes(*role, needed))
    }

    /// It may do anything, anywhere.
    pub fn is_operator(&self) -> bool {
        self.project.is_none() && self.may(Role::Admin)
    }

    /// It may claim and drive the jobs of this cluster.
    pub fn works_for(&self, cluster: &str) -> bool {
        let own = || self.cluster.as_ref().is_some_and(|own| own.as_str() == cluster);
        self.is_operator() || self.roles.contains(&Role::Work) && own()
    }

    /// What it sees.
    pub fn scope(&self) -> Scope {
        self.project.clone().map_or(Scope::All, Scope::Project)
    }
}

fn includes(has: Role, needed: Role) -> bool {
    match needed {
        Role::Read => has != Role::Work,
        Role::Submit => matches!(has, Role::Submit | Role::Admin),
        // Whoever may post jobs may act on them.
        Role::Cancel => matches!(has, Role::Cancel | Role::Submit | Role::Admin),
        Role::Admin => has == Role::Admin,
        Role::Work => matches!(has, Role::Work | Role::Admin),
    }
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The token is mistyped, unknown, revoked or past its time.
    #[error("the token is not valid")]
    Invalid,
    /// The token could not be looked up.
    #[error("the token cannot be checked")]
    Store(#[from] StoreError),
}

/// A configured administrator's token nobody should use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an administrator's token has at least {MIN_BOOTSTRAP_LENGTH} characters")]
pub struct TooShort;

/// A new token: what to store, and the text that is shown once.
#[derive(Clone)]
pub struct Minted {
    /// What to store.
    pub token: Token,
    /// The whole token, for its holder.
    pub text: String,
}

/// A well-formed token text that belongs to no stored token: for the administrator an embedded gateway begins with.
pub fn generate_bootstrap() -> String {
    token::mint(TokenId::generate()).0
}

/// What a new token is asked to be.
#[derive(Debug, Clone)]
pub struct TokenWish {
    /// For people.
    pub name: String,
    /// The project it opens; every project when absent.
    pub project: Option<Project>,
    /// The cluster it works for, if that is what it is for.
    pub cluster: Option<ClusterName>,
    /// What it allows.
    pub roles: Vec<Role>,
    /// Not valid from this time on.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Makes a token.
pub fn mint(wish: TokenWish, created_by: &str, now: DateTime<Utc>) -> Minted {
    let id = TokenId::generate();
    let (text, secret_sha256) = token::mint(id);
    let TokenWish { name, project, cluster, roles, expires_at } = wish;
    let created_by = created_by.to_owned();
    let token =
        Token { id, name, project, cluster, roles, secret_sha256, created_by, created_at: now, expires_at };
    Minted { token, text }
}

/// Decides who somebody is.
#[derive(Debug)]
pub struct Authority {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// SHA-256 of the configured administrator's token.
    bootstrap: Option<[u8; 32]>,
    operator: Arc<Principal>,
    remembered: RwLock<HashMap<TokenId, Arc<Remembered>>>,
    /// How often all that is remembered was doubted.
    doubts: AtomicU64,
    lookups: Semaphore,
}

/// A token as last read.
#[derive(Debug)]
struct Remembered {
    /// Absent when there is no such token.
    known: Option<Known>,
    read_at: Instant,
    /// The doubts there were before it was read.
    doubts: u64,
    /// Somebody is reading it anew.
    refreshing: AtomicBool,
}

#[derive(Debug)]
struct Known {
    principal: Arc<Principal>,
    secret_sha256: [u8; 32],
    expires_at: Option<DateTime<Utc>>,
}

impl Authority {
    /// Knows the tokens of `store`, and `bootstrap` (a configured administrator's token) beside them.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        bootstrap: Option<&str>,
    ) -> Result<Self, TooShort> {
        if bootstrap.is_some_and(|text| text.len() < MIN_BOOTSTRAP_LENGTH) {
            return Err(TooShort);
        }
        let operator = Principal {
            by: format!("token:{BOOTSTRAP}"),
            project: None,
            cluster: None,
            roles: vec![Role::Admin],
        };
        Ok(Self {
            store,
            clock,
            bootstrap: bootstrap.map(token::sha256),
            operator: Arc::new(operator),
            remembered: RwLock::default(),
            doubts: AtomicU64::new(0),
            lookups: Semaphore::new(MAX_LOOKUPS),
        })
    }

    /// Whose token this is.
    pub async fn authenticate(&self, text: &str) -> Result<Arc<Principal>, AuthError> {
        if self.is_bootstrap(text) {
            return Ok(self.operator.clone());
        }
        let presented = token::parse(text).ok_or(AuthError::Invalid)?;
        self.judge(presented, &*self.recall(presented.id).await?)
    }

    /// Whose token this is, or was a while ago if the store does not tell now. For who only watches.
    pub async fn authenticate_watcher(&self, text: &str) -> Result<Arc<Principal>, AuthError> {
        if self.is_bootstrap(text) {
            return Ok(self.operator.clone());
        }
        let presented = token::parse(text).ok_or(AuthError::Invalid)?;
        let age = |found: &Arc<Remembered>| self.clock.monotonic().duration_since(found.read_at);
        let last = self.remembered(presented.id).filter(|found| age(found) < OUTAGE_TRUST);
        let Some(last) = last else { return self.judge(presented, &*self.recall(presented.id).await?) };
        match tokio::time::timeout(OUTAGE_PATIENCE, self.recall(presented.id)).await {
            Ok(Ok(fresh)) => self.judge(presented, &fresh),
            Ok(Err(StoreError::Away(_))) | Err(_) => self.judge(presented, &last),
            Ok(Err(error @ StoreError::Refused { .. })) => Err(error.into()),
        }
    }

    /// Completes some time after the token is no longer good. That the store does not tell is no such end.
    pub async fn until_invalid(&self, text: &str) {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            match self.authenticate_watcher(text).await {
                Ok(_) | Err(AuthError::Store(_)) => {}
                Err(AuthError::Invalid) => return,
            }
        }
    }

    fn is_bootstrap(&self, text: &str) -> bool {
        self.bootstrap.as_ref().is_some_and(|own| bool::from(token::sha256(text).ct_eq(own)))
    }

    fn judge(&self, presented: Presented<'_>, remembered: &Remembered) -> Result<Arc<Principal>, AuthError> {
        let known = remembered.known.as_ref().ok_or(AuthError::Invalid)?;
        if !bool::from(presented.secret.sha256().ct_eq(&known.secret_sha256)) {
            return Err(AuthError::Invalid);
        }
        if known.expires_at.is_some_and(|end| end <= self.clock.now()) {
            return Err(AuthError::Invalid);
        }
        Ok(known.principal.clone())
    }

    /// Believes no reading of a token any more: the next use of each reads it from the store. What was read stays for who
    /// watches while the store is away.
    pub fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// Forgets a token that was revoked here: nobody is known by it, not even while the store is away.
    pub fn forget(&self, id: TokenId) {
        self.doubt();
        self.remembered.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn is_doubted(&self, found: &Remembered) -> bool {
        found.doubts != self.doubts.load(Ordering::Acquire)
    }

    async fn recall(&self, id: TokenId) -> Result<Arc<Remembered>, StoreError> {
        let Some(found) = self.remembered(id) else { return self.read(id, None).await };
        let age = self.clock.monotonic().duration_since(found.read_at);
        if age >= TRUST || self.is_doubted(&found) {
            return self.read(id, Some(&found)).await;
        }
        if age >= REFRESH_AFTER && !found.refreshing.swap(true, Ordering::Relaxed) {
            // The old reading is still good should this one fail; the next request tries again.
            let fresh = self.read(id, Some(&found)).await;
            found.refreshing.store(false, Ordering::Relaxed);
            return Ok(fresh.unwrap_or(found));
        }
        Ok(found)
    }

    fn remembered(&self, id: TokenId) -> Option<Arc<Remembered>> {
        self.remembered.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Reads a token from the store, unless somebody else did while this one waited for its turn: then what is remembered
    /// is another than `stale`.
    async fn read(
        &self,
        id: TokenId,
        stale: Option<&Arc<Remembered>>,
    ) -> Result<Arc<Remembered>, StoreError> {
        // Never closed, so this always gets its turn.
        let _turn = self.lookups.acquire().await;
        if let Some(found) = self.remembered(id)
            && !self.is_doubted(&found)
            && stale.is_none_or(|stale| !Arc::ptr_eq(stale, &found))
        {
            return Ok(found);
        }
        // Before the read: what is older than the answer must not count as newer.
        let (read_at, doubts) = (self.clock.monotonic(), self.doubts.load(Ordering::Acquire));
        let known = self.store.token(id).await?.map(|token| Known {
            principal: Arc::new(Principal {
                by: format!("token:{}", token.name),
                project: token.project,
                cluster: token.cluster,
                roles: token.roles,
            }),
            secret_sha256: token.secret_sha256,
            expires_at: token.expires_at,
        });
        let fresh = Arc::new(Remembered { known, read_at, doubts, refreshing: AtomicBool::new(false) });
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(id, fresh.clone());
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ScriptedStore;
    use jobgate_shared::{
        clock::{ManualClock, system},
        store::memory::MemoryStore,
    };

    fn wish(project: Option<&str>, roles: &[Role]) -> TokenWish {
        let project = project.map(|name| name.parse().unwrap());
        TokenWish { name: "ci".to_owned(), project, cluster: None, roles: roles.to_vec(), expires_at: None }
    }

    async fn stored(store: &MemoryStore, wish: TokenWish) -> Minted {
        let minted = mint(wish, "token:test", system().now());
        store.create_token(&minted.token).await.unwrap();
        minted
    }

    fn authority(bootstrap: Option<&str>) -> (Arc<MemoryStore>, Arc<ManualClock>, Authority) {
        let clock = Arc::new(ManualClock::at(system().now()));
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let authority = Authority::new(store.clone(), clock.clone(), bootstrap).unwrap();
        (store, clock, authority)
    }

    #[tokio::test]
    async fn a_stored_token_tells_who_its_holder_is() {
        let (store, _, authority) = authority(None);
        let minted = stored(&store, wish(Some("a"), &[Role::Submit])).await;
        let principal = authority.authenticate(&minted.text).await.unwrap();
        assert_eq!(principal.by, "token:ci");
        assert_eq!(principal.scope(), Scope::Project("a".parse().unwrap()));
        assert!(!principal.is_operator());
    }

    #[tokio::test]
    async fn another_secret_under_a_known_id_is_refused() {
        let (store, _, authority) = authority(None);
        let mut minted = stored(&store, wish(None, &[Role::Admin])).await;
        minted.token.secret_sha256[0] ^= 1;
        store.revoke_token(&Scope::All, minted.token.id).await.unwrap();
        store.create_token(&minted.token).await.unwrap();
        assert!(matches!(authority.authenticate(&minted.text).await, Err(AuthError::Invalid)));
    }

    #[tokio::test]
    async fn an_unknown_or_mistyped_token_is_refused() {
        let (_, _, authority) = authority(None);
        for text in [generate_bootstrap().as_str(), "", "jgt_x", "secret"] {
            assert!(matches!(authority.authenticate(text).await, Err(AuthError::Invalid)), "{text}");
        }
    }

    #[tokio::test]
    async fn a_token_is_refused_from_its_last_moment_on() {
        let (store, clock, authority) = authority(None);
        let expires_at = Some(clock.now() + Duration::from_mins(1));
        let minted = stored(&store, TokenWish { expires_at, ..wish(None, &[Role::Read]) }).await;
        authority.authenticate(&minted.text).await.unwrap();
        clock.advance(Duration::from_mins(1));
        assert!(matches!(authority.authenticate(&minted.text).await, Err(AuthError::Invalid)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_revocation_is_in_force_once_trust_has_run_out_and_at_once_after_a_nudge() {
        let (store, _, authority) = authority(None);
        let first = stored(&store, wish(None, &[Role::Read])).await;
        let second = stored(&store, wish(None, &[Role::Read])).await;
        for minted in [&first, &second] {
            authority.authenticate(&minted.text).await.unwrap();
            store.revoke_token(&Scope::All, minted.token.id).await.unwrap();
            authority.authenticate(&minted.text).await.unwrap();
        }
        tokio::time::advance(TRUST).await;
        assert!(matches!(authority.authenticate(&first.text).await, Err(AuthError::Invalid)));
        let third = stored(&store, wish(None, &[Role::Read])).await;
        authority.authenticate(&third.text).await.unwrap();
        store.revoke_token(&Scope::All, third.token.id).await.unwrap();
        authority.doubt();
        assert!(matches!(authority.authenticate(&third.text).await, Err(AuthError::Invalid)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_watches_is_known_through_an_outage_of_the_store_and_nobody_else_is() {
        let (store, clock) = (ScriptedStore::new(), Arc::new(ManualClock::at(system().now())));
        let authority = Authority::new(store.clone(), clock.clone(), None).unwrap();
        let expires_at = Some(clock.now() + Duration::from_hours(20));
        let lasting = stored(&store.inner, wish(None, &[Role::Read])).await;
        let ending = stored(&store.inner, TokenWish { expires_at, ..wish(None, &[Role::Read]) }).await;
        let (revoked, unseen) = (
            stored(&store.inner, wish(None, &[Role::Read])).await,
            stored(&store.inner, wish(None, &[Role::Read])).await,
        );
        for minted in [&lasting, &ending, &revoked] {
            authority.authenticate_watcher(&minted.text).await.unwrap();
        }
        store.inner.revoke_token(&Scope::All, revoked.token.id).await.unwrap();
        tokio::time::advance(TRUST).await;
        assert!(matches!(authority.authenticate_watcher(&revoked.text).await, Err(AuthError::Invalid)));
        store.away.store(true, Ordering::SeqCst);
        for minted in [&lasting, &ending] {
            authority.authenticate_watcher(&minted.text).await.unwrap();
            assert!(matches!(authority.authenticate(&minted.text).await, Err(AuthError::Store(_))));
        }
        assert!(matches!(authority.authenticate_watcher(&revoked.text).await, Err(AuthError::Invalid)));
        assert!(matches!(authority.authenticate_watcher(&unseen.text).await, Err(AuthError::Store(_))));
        let (other, _) = token::mint(lasting.token.id);
        assert!(matches!(authority.authenticate_watcher(&other).await, Err(AuthError::Invalid)));
        tokio::time::advance(Duration::from_hours(20)).await;
        clock.advance(Duration::from_hours(20));
        authority.authenticate_watcher(&lasting.text).await.unwrap();
        assert!(matches!(authority.authenticate_watcher(&ending.text).await, Err(AuthError::Invalid)));
        tokio::time::advance(Duration::from_hours(4)).await;
        assert!(matches!(authority.authenticate_watcher(&lasting.text).await, Err(AuthError::Store(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_token_holds_open_outlives_an_outage_and_not_the_token_even_during_one() {
        let (store, clock) = (ScriptedStore::new(), Arc::new(ManualClock::at(system().now())));
        let authority = Authority::new(store.clone(), clock.clone(), None).unwrap();
        let expires_at = Some(clock.now() + Duration::from_mins(1));
        let minted = stored(&store.inner, TokenWish { expires_at, ..wish(None, &[Role::Read]) }).await;
        authority.authenticate(&minted.text).await.unwrap();
        store.away.store(true, Ordering::SeqCst);
        let ended = authority.until_invalid(&minted.text);
        tokio::pin!(ended);
        assert!(tokio::time::timeout(Duration::from_mins(5), &mut ended).await.is_err());
        clock.advance(Duration::from_mins(1));
        tokio::time::timeout(ASK_AGAIN + OUTAGE_PATIENCE, ended).await.unwrap();
    }

    #[tokio::test]
    async fn a_nudge_just_before_an_outage_leaves_who_watches_known_and_nobody_else() {
        let store = ScriptedStore::new();
        let authority = Authority::new(store.clone(), system(), None).unwrap();
        let kept = stored(&store.inner, wish(None, &[Role::Read])).await;
        let (told, untold) = (
            stored(&store.inner, wish(None, &[Role::Read])).await,
            stored(&store.inner, wish(None, &[Role::Read])).await,
        );
        for minted in [&kept, &told, &untold] {
            authority.authenticate_watcher(&minted.text).await.unwrap();
        }
        for minted in [&told, &untold] {
            store.inner.revoke_token(&Scope::All, minted.token.id).await.unwrap();
        }
        authority.doubt();
        assert!(matches!(authority.authenticate_watcher(&untold.text).await, Err(AuthError::Invalid)));
        authority.forget(told.token.id);
        store.away.store(true, Ordering::SeqCst);
        authority.authenticate_watcher(&kept.text).await.unwrap();
        assert!(matches!(authority.authenticate(&kept.text).await, Err(AuthError::Store(_))));
        assert!(matches!(authority.authenticate_watcher(&untold.text).await, Err(AuthError::Invalid)));
        assert!(matches!(authority.authenticate_watcher(&told.text).await, Err(AuthError::Store(_))));
    }

    #[tokio::test]
    async fn the_configured_administrator_may_do_everything_and_must_not_be_easy_to_guess() {
        let own_making = generate_bootstrap();
        for text in [own_making.as_str(), "0123456789 0123456789 0123456789"] {
            let (_, _, authority) = authority(Some(text));
            assert!(authority.authenticate(text).await.unwrap().is_operator());
            assert!(authority.authenticate("0123456789 0123456789 012345678 ").await.is_err());
        }
        let store = Arc::new(MemoryStore::new(system()));
        assert!(matches!(Authority::new(store, system(), Some("too short")), Err(TooShort)));
    }

    #[test]
    fn each_role_includes_what_the_port_says() {
        let all = [Role::Read, Role::Submit, Role::Cancel, Role::Admin, Role::Work];
        let table: Vec<(Role, Vec<Role>)> = all
            .into_iter()
            .map(|has| (has, all.into_iter().filter(|needed| includes(has, *needed)).collect()))
            .collect();
        assert_eq!(
            table,
            [
                (Role::Read, vec![Role::Read]),
                (Role::Submit, vec![Role::Read, Role::Submit, Role::Cancel]),
                (Role::Cancel, vec![Role::Read, Role::Cancel]),
                (Role::Admin, all.to_vec()),
                (Role::Work, vec![Role::Work]),
            ]
        );
    }

    #[test]
    fn only_its_own_token_and_an_operators_work_for_a_cluster() {
        let own = |name: &str| Some(name.parse().unwrap());
        let principal = |project: Option<&str>, cluster, role| Principal {
            by: "token:t".to_owned(),
            project: project.map(|name| name.parse().unwrap()),
            cluster,
            roles: vec![role],
        };
        assert!(principal(None, own("far"), Role::Work).works_for("far"));
        assert!(principal(None, None, Role::Admin).works_for("far"));
        assert!(!principal(None, own("near"), Role::Work).works_for("far"));
        assert!(!principal(None, None, Role::Work).works_for("far"));
        assert!(!principal(Some("a"), None, Role::Admin).works_for("far"));
        assert!(!principal(None, own("far"), Role::Submit).works_for("far"));
    }
}
