//! What SQLite itself can do in a directory, measured in a file of no use to anyone.

use super::{fault, settings_of};
use crate::store::{
    StoreResult,
    floors::{CLAIMED, INSERTED, StoreFloors, median},
};
use sqlx::{Connection as _, Executor as _, SqliteConnection};
use std::path::Path;

/// Measures it in a new file in `directory`, with the durability the store has, and removes the file.
pub async fn floors(directory: &Path) -> StoreResult<StoreFloors> {
    const OPERATION: &str = "measure";
    let failed = |error| fault(error, OPERATION);
    let file = directory.join("floors.db");
    let mut connection = SqliteConnection::connect_with(&settings_of(&file)).await.map_err(failed)?;
    let floors = measure(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.clone().into_os_string();
        path.push(suffix);
        // Whoever made the directory removes it; the last connection has removed the other two.
        tokio::fs::remove_file(path).await.ok();
    }
    Ok(floors)
}

async fn measure(connection: &mut SqliteConnection) -> sqlx::Result<StoreFloors> {
    connection
        .execute(
            "-- make_floor_tables
             CREATE TABLE floor_bodies (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
             CREATE TABLE floor_states (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, owner BLOB) STRICT;",
        )
        .await?;
    let ids = |round: u32, rows: u32| {
        let ids: Vec<u32> = (0..rows).map(|row| round * INSERTED + row).collect();
        serde_json::json!(ids).to_string()
    };
    let body = "x".repeat(200);
    let insert_thousand_rows = median(async |round| {
        sqlx::query("-- floor_insert\nINSERT INTO floor_bodies SELECT value, ?2 FROM json_each(?1)")
            .bind(ids(round, INSERTED))
            .bind(&body)
            .execute(&mut *connection)
            .await
            .map(drop)
    })
    .await?;
    connection
        .execute("-- floor_states\nINSERT INTO floor_states (id, state) SELECT id, 1 FROM floor_bodies")
        .await?;
    let claim_hundred_by_id = median(async |round| {
        let claimed = sqlx::query(
            "-- floor_claim
             UPDATE floor_states SET state = 2, owner = x'00'
              WHERE id IN (SELECT value FROM json_each(?1)) AND state = 1 RETURNING id",
        )
        .bind(ids(round, CLAIMED))
        .fetch_all(&mut *connection)
        .await?;
        if claimed.len() == CLAIMED as usize { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
    })
    .await?;
    let commit_one_row = median(async |_| {
        sqlx::query("-- floor_commit\nINSERT INTO floor_bodies (body) VALUES (?1)")
            .bind(&body)
            .execute(&mut *connection)
            .await
            .map(drop)
    })
    .await?;
    Ok(StoreFloors { commit_one_row, insert_thousand_rows, claim_hundred_by_id })
}
