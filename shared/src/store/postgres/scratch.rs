//! A database of its own for a measurement, made beside the configured one and dropped after it; and what the server itself
//! can do, measured in there.

use super::{PostgresConfig, pools};
use crate::store::{
    StoreResult,
    floors::{CLAIMED, INSERTED, StoreFloors, median},
};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _};
use uuid::Uuid;

const OPERATION: &str = "prepare a measurement";

/// A database that exists until [`ScratchDatabase::remove`].
#[derive(Debug)]
pub struct ScratchDatabase {
    server: PostgresConfig,
    name: String,
    /// How the database is reached.
    pub config: PostgresConfig,
}

impl ScratchDatabase {
    /// Makes an empty database on the configured server, whose user must be allowed to.
    pub async fn create(server: &PostgresConfig) -> StoreResult<Self> {
        let failed = |error| pools::error(error, OPERATION);
        let name = format!("jobgate_scratch_{}", Uuid::new_v4().simple());
        let options = server.options("measure").map_err(failed)?;
        let mut connection = pools::reach(&options, server, OPERATION).await?;
        let create = format!("-- create_scratch\nCREATE DATABASE {name}");
        connection.execute(sqlx::AssertSqlSafe(create).into_sql_str()).await.map_err(failed)?;
        connection.close().await.map_err(failed)?;
        let url = options.database(&name).to_url_lossy().to_string();
        Ok(Self { server: server.clone(), name, config: PostgresConfig { url, ..server.clone() } })
    }

    /// Drops it, whoever is still connected.
    pub async fn remove(self) -> StoreResult<()> {
        let failed = |error| pools::error(error, OPERATION);
        let options = self.server.options("measure").map_err(failed)?;
        let mut connection = pools::reach(&options, &self.server, OPERATION).await?;
        let drop = format!("-- drop_scratch\nDROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        connection.execute(sqlx::AssertSqlSafe(drop).into_sql_str()).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// How many bytes of write-ahead log the server has written since it was made.
    pub async fn wal_bytes(&self) -> StoreResult<u64> {
        let options = self.config.options("measure").map_err(|error| pools::error(error, OPERATION))?;
        let mut connection = pools::reach(&options, &self.config, OPERATION).await?;
        let bytes: i64 = sqlx::query_scalar(
            "-- wal_bytes
             SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(|error| pools::error(error, OPERATION))?;
        Ok(bytes.unsigned_abs())
    }

    /// Measures what the server does at best, in tables of no use to anyone.
    pub async fn floors(&self) -> StoreResult<StoreFloors> {
        let options = self.config.options("measure").map_err(|error| pools::error(error, OPERATION))?;
        let mut connection = pools::reach(&options, &self.config, OPERATION).await?;
        measure(&mut connection).await.map_err(|error| pools::error(error, OPERATION))
    }
}

async fn measure(connection: &mut PgConnection) -> sqlx::Result<StoreFloors> {
    connection
        .execute(
            "-- make_floor_tables
             CREATE TABLE floor_bodies (id uuid PRIMARY KEY, body text NOT NULL);
             CREATE TABLE floor_states (id uuid PRIMARY KEY, state smallint NOT NULL, owner uuid) WITH (fillfactor = 50);",
        )
        .await?;
    let ids = |round: u32, rows: u32| -> Vec<Uuid> {
        (0..rows).map(|row| Uuid::from_u128(u128::from(round * INSERTED + row))).collect()
    };
    let body = "x".repeat(200);
    let insert_thousand_rows = median(async |round| {
        sqlx::query(
            "-- floor_insert
             INSERT INTO floor_bodies SELECT id, $2 FROM unnest($1::uuid[]) AS n (id)",
        )
        .bind(ids(round, INSERTED))
        .bind(&body)
        .execute(&mut *connection)
        .await
        .map(drop)
    })
    .await?;
    sqlx::query("-- floor_states\nINSERT INTO floor_states SELECT id, 1 FROM floor_bodies")
        .execute(&mut *connection)
        .await?;
    let claim_hundred_by_id = median(async |round| {
        let claimed = sqlx::query(
            "-- floor_claim
             UPDATE floor_states SET state = 2, owner = $2 WHERE id = ANY ($1) AND state = 1 RETURNING id",
        )
        .bind(ids(round, CLAIMED))
        .bind(Uuid::nil())
        .fetch_all(&mut *connection)
        .await?;
        if claimed.len() != CLAIMED as usize || claimed[0].try_get::<Uuid, _>(0).is_err() {
            return Err(sqlx::Error::RowNotFound);
        }
        Ok(())
    })
    .await?;
    let commit_one_row = median(async |_| {
        sqlx::query("-- floor_commit\nINSERT INTO floor_bodies VALUES (gen_random_uuid(), $1)")
            .bind(&body)
            .execute(&mut *connection)
            .await
            .map(drop)
    })
    .await?;
    connection.execute("-- drop_floor_tables\nDROP TABLE floor_bodies, floor_states").await?;
    Ok(StoreFloors { commit_one_row, insert_thousand_rows, claim_hundred_by_id })
}
