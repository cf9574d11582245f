//! What operators set: pauses, limits, tokens. And the server's own answer and clock.

use super::{
    pools::{Lane, Pools, Work},
    rows::{Columns, corrupt, json, signed},
};
use crate::{
    domain::{ClusterName, Project, TokenId},
    store::{ClusterSetting, Scope, StoreResult, Token},
};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use sqlx::{PgConnection, Row as _, postgres::PgRow};
use std::sync::Arc;

impl Pools {
    pub(super) async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.read(Lane::Read, "read the clock", &(), |c, ()| now(c)).await
    }

    pub(super) async fn cluster_settings(&self) -> StoreResult<Vec<ClusterSetting>> {
        self.read(Lane::Read, "read cluster settings", &(), |c, ()| cluster_settings(c)).await
    }

    pub(super) async fn set_paused(
        self: &Arc<Self>,
        cluster: &ClusterName,
        paused: bool,
        by: &str,
    ) -> StoreResult<()> {
        let input = (cluster.as_str().to_owned(), paused, by.to_owned());
        self.write(Lane::Hot, "set a cluster", input, |c, (cluster, paused, by)| {
            set_paused(c, cluster, *paused, by)
        })
        .await
    }

    pub(super) async fn limit(
        self: &Arc<Self>,
        cluster: &ClusterName,
        max_in_flight: Option<u32>,
        by: &str,
    ) -> StoreResult<()> {
        let input = (cluster.as_str().to_owned(), max_in_flight, by.to_owned());
        self.write(Lane::Hot, "limit a cluster", input, |c, (cluster, max_in_flight, by)| {
            limit(c, cluster, *max_in_flight, by)
        })
        .await
    }

    pub(super) async fn create_token(self: &Arc<Self>, token: &Token) -> StoreResult<()> {
        self.write(Lane::Hot, "store a token", token.clone(), |c, token| create_token(c, token)).await
    }

    pub(super) async fn tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>> {
        let all = self.read(Lane::Read, "list tokens", &(), |c, ()| tokens(c)).await?;
        Ok(all.into_iter().filter(|token| scope.covers_token(token)).collect())
    }

    pub(super) async fn token(&self, id: TokenId) -> StoreResult<Option<Token>> {
        self.read(Lane::Read, "read a token", &id, |c, id| token(c, *id)).await
    }

    pub(super) async fn revoke_token(self: &Arc<Self>, scope: &Scope, id: TokenId) -> StoreResult<bool> {
        self.write(Lane::Hot, "remove a token", (scope.clone(), id), |c, (scope, id)| {
            revoke_token(c, scope, *id)
        })
        .await
    }
}

fn now(connection: &mut PgConnection) -> Work<'_, DateTime<Utc>> {
    let now = sqlx::query_scalar(
        "-- server_time
         SELECT now()",
    );
    now.fetch_one(connection).boxed()
}

fn cluster_settings(connection: &mut PgConnection) -> Work<'_, Vec<ClusterSetting>> {
    async move {
        let rows = sqlx::query(
            "-- cluster_settings
             SELECT name, paused, set_by, set_at, max_in_flight FROM clusters ORDER BY name",
        )
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                Ok(ClusterSetting {
                    cluster: columns.name()?,
                    paused: columns.take()?,
                    by: columns.take()?,
                    at: columns.take()?,
                    max_in_flight: columns.take::<Option<i32>>()?.map(i32::unsigned_abs),
                })
            })
            .collect()
    }
    .boxed()
}

fn limit<'c>(
    connection: &'c mut PgConnection,
    cluster: &'c str,
    max_in_flight: Option<u32>,
    by: &'c str,
) -> Work<'c, ()> {
    async move {
        sqlx::query(
            "-- limit_cluster
             INSERT INTO clusters (name, paused, set_by, set_at, max_in_flight) VALUES ($1, false, $2, now(), $3)
             ON CONFLICT (name) DO UPDATE SET max_in_flight = excluded.max_in_flight",
        )
        .bind(cluster)
        .bind(by)
        .bind(max_in_flight.map(signed))
        .execute(connection)
        .await
        .map(drop)
    }
    .boxed()
}

fn set_paused<'c>(
    connection: &'c mut PgConnection,
    cluster: &'c str,
    paused: bool,
    by: &'c str,
) -> Work<'c, ()> {
    async move {
        sqlx::query(
            "-- set_cluster
             INSERT INTO clusters (name, paused, set_by, set_at) VALUES ($1, $2, $3, now())
             ON CONFLICT (name) DO UPDATE
                SET paused = excluded.paused, set_by = excluded.set_by, set_at = excluded.set_at",
        )
        .bind(cluster)
        .bind(paused)
        .bind(by)
        .execute(connection)
        .await
        .map(drop)
    }
    .boxed()
}

fn create_token<'c>(connection: &'c mut PgConnection, token: &'c Token) -> Work<'c, ()> {
    async move {
        sqlx::query(
            "-- create_token
             INSERT INTO tokens (id, name, project, roles, secret_sha256, created_by, created_at, expires_at, cluster)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(token.id.0)
        .bind(&token.name)
        .bind(token.project.as_ref().map(Project::as_str))
        .bind(json(&token.roles))
        .bind(token.secret_sha256.as_slice())
        .bind(&token.created_by)
        .bind(token.created_at)
        .bind(token.expires_at)
        .bind(token.cluster.as_ref().map(ClusterName::as_str))
        .execute(connection)
        .await
        .map(drop)
    }
    .boxed()
}

/// What [`read_token`] reads.
macro_rules! token_columns {
    () => {
        "t.id, t.name, t.project, t.roles, t.secret_sha256, t.created_by, t.created_at, t.expires_at, t.cluster"
    };
}

fn read_token(row: &PgRow) -> sqlx::Result<Token> {
    let mut columns = Columns::of(row);
    let (id, name) = (TokenId(columns.take()?), columns.take()?);
    let project = columns.take::<Option<String>>()?.map(Project::try_from).transpose().map_err(corrupt)?;
    let roles = columns.json()?;
    let secret: &[u8] = columns.take()?;
    Ok(Token {
        id,
        name,
        project,
        roles,
        secret_sha256: secret.try_into().map_err(corrupt)?,
        created_by: columns.take()?,
        created_at: columns.take()?,
        expires_at: columns.take()?,
        cluster: columns.take::<Option<String>>()?.map(ClusterName::try_from).transpose().map_err(corrupt)?,
    })
}

fn tokens(connection: &mut PgConnection) -> Work<'_, Vec<Token>> {
    async move {
        let rows = sqlx::query(concat!(
            "-- list_tokens
             SELECT ",
            token_columns!(),
            " FROM tokens t ORDER BY t.created_at DESC, t.id DESC"
        ))
        .fetch_all(connection)
        .await?;
        rows.iter().map(read_token).collect()
    }
    .boxed()
}

fn token(connection: &mut PgConnection, id: TokenId) -> Work<'_, Option<Token>> {
    async move {
        let row = sqlx::query(concat!(
            "-- read_token
             SELECT ",
            token_columns!(),
            " FROM tokens t WHERE t.id = $1"
        ))
        .bind(id.0)
        .fetch_optional(connection)
        .await?;
        row.as_ref().map(read_token).transpose()
    }
    .boxed()
}

fn revoke_token<'c>(connection: &'c mut PgConnection, scope: &'c Scope, id: TokenId) -> Work<'c, bool> {
    async move {
        let project = match scope {
            Scope::All => None,
            Scope::Project(project) => Some(project.as_str()),
        };
        let row = sqlx::query(
            "-- revoke_token
             WITH gone AS (DELETE FROM tokens WHERE id = $1 AND ($2::text IS NULL OR project = $2) RETURNING id)
             SELECT EXISTS (SELECT FROM gone)",
        )
        .bind(id.0)
        .bind(project)
        .fetch_one(connection)
        .await?;
        row.try_get(0)
    }
    .boxed()
}
