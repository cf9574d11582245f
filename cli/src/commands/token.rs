//! `jobgate token create`, `list` and `revoke`.

use super::{Connection, Session, items, read, select::Moment, tell};
use crate::{
    client::{Request, TokenDoc},
    config::Config,
    exit::Exit,
    render::{Table, clean, stamp},
};
use jobgate_shared::{
    clock,
    domain::{ClusterName, TokenId},
};
use serde_json::{Value, json};

/// Makes, lists and revokes tokens
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a token and print it; it cannot be shown again
    Create {
        /// For people; stands in the history of what its holder does
        name: String,
        /// What it allows; can be given several times
        #[arg(long, required = true, value_enum)]
        role: Vec<Role>,
        /// The project it opens, `*` for every one [default: your own; to be given if yours opens every one]
        #[arg(long)]
        opens: Option<String>,
        /// The cluster to work for from outside, with `--role work`
        #[arg(long)]
        cluster: Option<ClusterName>,
        /// When it ends: a time, or how long from now
        #[arg(long, value_name = "WHEN")]
        expires: Option<Moment>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke tokens by their ids
    Revoke {
        /// The tokens
        #[arg(required = true, value_name = "ID")]
        ids: Vec<TokenId>,
        #[command(flatten)]
        connection: Connection,
    },
}

/// What a token allows.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Role {
    /// See jobs.
    Read,
    /// See and post jobs, and act on them.
    Submit,
    /// See and cancel jobs.
    Cancel,
    /// Everything in the project, and tokens.
    Admin,
    /// Claim and drive the jobs of the token's cluster.
    Work,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Cancel => "cancel",
            Self::Admin => "admin",
            Self::Work => "work",
        }
    }
}

impl Token {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        match self.action {
            Action::Create { name, role, opens, cluster, expires, connection } => {
                let roles: Vec<&str> = role.into_iter().map(Role::as_str).collect();
                let expires_at = expires.map(|moment| moment.ahead(clock::system().as_ref()));
                let mut wish = json!({"name": name, "roles": roles});
                let given = [
                    ("project", opens.map(|name| json!(name))),
                    ("cluster", cluster.map(|name| json!(name))),
                    ("expires_at", expires_at.map(|at| json!(at))),
                ];
                for (field, value) in given {
                    if let Some(value) = value {
                        wish[field] = value;
                    }
                }
                create(connection.open(config)?, &wish).await
            }
            Action::List { connection } => list(connection.open(config)?).await,
            Action::Revoke { ids, connection } => {
                let Session { client, .. } = connection.open(config)?;
                for id in ids {
                    client.send(Request::delete(format!("/v1/tokens/{id}"))).await?;
                    tell(format_args!("{id} is revoked"));
                }
                Ok(Exit::Done)
            }
        }
    }
}

async fn create(Session { client, mut output }: Session, wish: &Value) -> anyhow::Result<Exit> {
    // Made once: an answer that is lost leaves a token nobody holds, which can be revoked.
    let document = client.send(Request::post("/v1/tokens").json(wish)).await?;
    if output.is_json() {
        output.document(&document)?;
    } else {
        let text = document.get("token").and_then(Value::as_str).unwrap_or_default();
        output.line(clean(text))?;
        tell("this token cannot be shown again");
    }
    Ok(Exit::Done)
}

async fn list(Session { client, mut output }: Session) -> anyhow::Result<Exit> {
    let document = client.send(Request::get("/v1/tokens")).await?;
    let mut table = Table::new(["ID", "NAME", "PROJECT", "CLUSTER", "ROLES", "CREATED", "EXPIRES", "BY"]);
    for item in items(&document) {
        if output.is_json() {
            output.document(item)?;
            continue;
        }
        let TokenDoc { id, name, project, cluster, roles, created_by, created_at, expires_at } = read(item)?;
        let when = |at: Option<_>| at.map(stamp).unwrap_or_default();
        let cluster = cluster.unwrap_or_default();
        let roles = roles.join(",");
        table.row(&[id, name, project, cluster, roles, when(created_at), when(expires_at), created_by]);
    }
    if !output.is_json() {
        output.line(table)?;
    }
    Ok(Exit::Done)
}
