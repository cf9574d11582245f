//! What operators set: tokens and clusters; and the store's own signs of life.

use super::{
    Stage,
    site::{Site, cluster, project},
};
use anyhow::{Result, ensure};
use chrono::TimeDelta;
use jobgate_shared::domain::{Project, TokenId};
use jobgate_shared::store::{Role, Scope, Token};

/// By its id, in its project's list and in everybody's; revoked, it is gone.
pub async fn a_token_is_found_listed_and_revoked(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let now = site.now().await?;
    let token = |n: u8, of: Option<Project>, expires: bool| Token {
        id: TokenId::generate(),
        name: format!("token \"{n}\""),
        project: of,
        cluster: None,
        roles: vec![Role::Submit, Role::Cancel],
        secret_sha256: [n; 32],
        created_by: "token:root".into(),
        created_at: now + TimeDelta::seconds(n.into()),
        expires_at: expires.then(|| now + TimeDelta::days(1)),
    };
    let (a, b) = (Scope::Project(project("a")), Scope::Project(project("b")));
    let tokens = [
        token(1, Some(project("a")), true),
        Token { cluster: Some(cluster("slurm-a")), roles: vec![Role::Work], ..token(2, None, false) },
        token(3, Some(project("a")), false),
        Token { roles: vec![], ..token(4, Some(project("b")), false) },
    ];
    for token in &tokens {
        site.store.create_token(token).await?;
        assert_eq!(site.store.token(token.id).await?.as_ref(), Some(token));
    }
    // A replay changes nothing.
    site.store.create_token(&Token { name: "other".into(), ..tokens[0].clone() }).await?;
    let [one, two, three, four] = tokens;
    assert_eq!(
        site.store.tokens(&Scope::All).await?,
        [four.clone(), three.clone(), two.clone(), one.clone()]
    );
    assert_eq!(site.store.tokens(&a).await?, [three.clone(), one.clone()]);
    assert_eq!(site.store.tokens(&b).await?, std::slice::from_ref(&four));
    for (scope, id, expected) in [
        (&b, one.id, false),
        (&a, two.id, false),
        (&a, TokenId::generate(), false),
        (&a, one.id, true),
        (&a, one.id, false),
        (&Scope::All, two.id, true),
    ] {
        assert_eq!(site.store.revoke_token(scope, id).await?, expected);
    }
    assert_eq!(site.store.token(one.id).await?, None);
    assert_eq!(site.store.tokens(&Scope::All).await?, [four, three]);
    Ok(())
}

/// The last word counts.
pub async fn a_cluster_setting_tells_who_set_it(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    assert_eq!(site.store.cluster_settings().await?, []);
    let before = site.now().await?;
    site.store.set_paused(&cluster("local"), true, "token:a").await?;
    site.store.set_paused(&cluster("slurm-a"), true, "token:a").await?;
    site.store.set_paused(&cluster("local"), false, "token:b").await?;
    let mut settings = site.store.cluster_settings().await?;
    settings.sort_by_key(|setting| setting.cluster.clone());
    let told: Vec<_> = settings.iter().map(|s| (s.cluster.as_str(), s.paused, s.by.as_str())).collect();
    assert_eq!(told, [("local", false, "token:b"), ("slurm-a", true, "token:a")]);
    assert!(settings.iter().all(|setting| setting.max_in_flight.is_none()));
    ensure!(settings.iter().all(|setting| setting.at >= before), "{settings:?}");
    // A limit and a pause leave each other as they are, and who paused is told still.
    site.store.limit(&cluster("local"), Some(3), "token:c").await?;
    site.store.limit(&cluster("far"), Some(0), "token:c").await?;
    site.store.set_paused(&cluster("slurm-a"), false, "token:d").await?;
    let mut settings = site.store.cluster_settings().await?;
    settings.sort_by_key(|setting| setting.cluster.clone());
    let told: Vec<_> =
        settings.iter().map(|s| (s.cluster.as_str(), s.by.as_str(), s.max_in_flight)).collect();
    let expected = [("far", "token:c", Some(0)), ("local", "token:b", Some(3)), ("slurm-a", "token:d", None)];
    assert_eq!(told, expected);
    Ok(())
}

/// Its time goes forward, in whole microseconds.
pub async fn the_store_answers_and_has_a_clock(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    site.store.ping().await?;
    let first = site.now().await?;
    let second = site.now().await?;
    ensure!(second >= first, "{second} after {first}");
    ensure!(first.timestamp_subsec_nanos().is_multiple_of(1000), "{first:?}");
    Ok(())
}
