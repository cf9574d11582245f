//! What operators set: pauses, limits, tokens.

use super::{
    SqliteStore,
    rows::{micros, read, time, write},
    writer::{Transaction, fault},
};
use crate::{
    domain::{ClusterName, TokenId},
    store::{ClusterSetting, Scope, StoreError, StoreResult, Token},
};
use sqlx::Row as _;

impl SqliteStore {
    pub(super) async fn settings(&self) -> StoreResult<Vec<ClusterSetting>> {
        let rows = sqlx::query(
            "-- cluster_settings\nSELECT name, paused, by, at, max_in_flight FROM clusters ORDER BY name",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "read cluster settings"))?;
        let setting = |row: &sqlx::sqlite::SqliteRow| {
            let cluster: ClusterName =
                row.get::<String, _>("name").try_into().map_err(|source: crate::domain::NameError| {
                    StoreError::Refused { operation: "read cluster settings", source: source.into() }
                })?;
            Ok(ClusterSetting {
                cluster,
                paused: row.get("paused"),
                by: row.get("by"),
                at: time(row.get("at")),
                max_in_flight: row.get("max_in_flight"),
            })
        };
        rows.iter().map(setting).collect()
    }

    pub(super) async fn pause(&self, cluster: &ClusterName, paused: bool, by: &str) -> StoreResult<()> {
        let (cluster, by) = (cluster.to_string(), by.to_owned());
        let set = self.writer.run(move |Transaction { connection, now }| {
            Box::pin(async move {
                sqlx::query(
                    "-- set_paused
                    INSERT INTO clusters (name, paused, by, at) VALUES (?1, ?2, ?3, ?4)
                    ON CONFLICT DO UPDATE SET paused = excluded.paused, by = excluded.by, at = excluded.at",
                )
                .bind(cluster)
                .bind(paused)
                .bind(by)
                .bind(micros(*now))
                .execute(connection)
                .await
                .map_err(|e| fault(e, "pause a cluster"))?;
                Ok(())
            })
        });
        set.await
    }

    pub(super) async fn set_limit(
        &self,
        cluster: &ClusterName,
        max_in_flight: Option<u32>,
        by: &str,
    ) -> StoreResult<()> {
        let (cluster, by) = (cluster.to_string(), by.to_owned());
        let set = self.writer.run(move |Transaction { connection, now }| {
            Box::pin(async move {
                sqlx::query(
                    "-- limit_cluster
                    INSERT INTO clusters (name, paused, by, at, max_in_flight) VALUES (?1, 0, ?2, ?3, ?4)
                    ON CONFLICT DO UPDATE SET max_in_flight = excluded.max_in_flight",
                )
                .bind(cluster)
                .bind(by)
                .bind(micros(*now))
                .bind(max_in_flight)
                .execute(connection)
                .await
                .map_err(|e| fault(e, "limit a cluster"))?;
                Ok(())
            })
        });
        set.await
    }

    pub(super) async fn keep_token(&self, token: &Token) -> StoreResult<()> {
        let (id, token) = (token.id, write(token)?);
        let kept = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                sqlx::query(
                    "-- create_token\nINSERT INTO tokens (id, token) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )
                .bind(id.0)
                .bind(token)
                .execute(connection)
                .await
                .map_err(|e| fault(e, "create a token"))?;
                Ok(())
            })
        });
        kept.await
    }

    pub(super) async fn all_tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>> {
        let rows = sqlx::query("-- tokens\nSELECT token FROM tokens")
            .fetch_all(&self.readers)
            .await
            .map_err(|e| fault(e, "list tokens"))?;
        let mut tokens = Vec::new();
        for row in &rows {
            let token: Token = read(&row.get::<String, _>(0))?;
            if scope.covers_token(&token) {
                tokens.push(token);
            }
        }
        tokens.sort_by_key(|token| std::cmp::Reverse((token.created_at, token.id)));
        Ok(tokens)
    }

    pub(super) async fn find_token(&self, id: TokenId) -> StoreResult<Option<Token>> {
        let row = sqlx::query("-- token\nSELECT token FROM tokens WHERE id = ?1")
            .bind(id.0)
            .fetch_optional(&self.readers)
            .await
            .map_err(|e| fault(e, "find a token"))?;
        row.map(|row| read(&row.get::<String, _>(0))).transpose()
    }

    pub(super) async fn drop_token(&self, scope: &Scope, id: TokenId) -> StoreResult<bool> {
        let scope = scope.clone();
        let dropped = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                let row = sqlx::query("-- token\nSELECT token FROM tokens WHERE id = ?1")
                    .bind(id.0)
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(|e| fault(e, "find a token"))?;
                let Some(row) = row else { return Ok(false) };
                if !scope.covers_token(&read(&row.get::<String, _>(0))?) {
                    return Ok(false);
                }
                sqlx::query("-- revoke_token\nDELETE FROM tokens WHERE id = ?1")
                    .bind(id.0)
                    .execute(connection)
                    .await
                    .map_err(|e| fault(e, "revoke a token"))?;
                Ok(true)
            })
        });
        dropped.await
    }
}
