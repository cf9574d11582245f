//! RabbitMQ: a private node with its own Erlang port mapper and cookie, so that nothing of the host's is touched or
//! seen, and a vhost per test. The management plugin is on; a queue's depth is asked over AMQP, whose answer is current.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use reqwest::{Client, Method, Url};
use rustix::process::Signal;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Home, finish};
use crate::environment::{AMQP_URL, MANAGEMENT_URL, required};
use crate::ports;
use crate::process::{LastWord, Managed, guarded};
use crate::wait::until;

/// It needs ten seconds of a processor to begin, and beside twenty busy process groups gets a tenth of one.
const START: Duration = Duration::from_mins(5);
const STOP: Duration = Duration::from_mins(1);
const ANSWER: Duration = Duration::from_secs(10);
const DEBIAN_PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
const LOOPBACK_DISTRIBUTION: &str = "-kernel inet_dist_use_interface {127,0,0,1}";

/// A private broker; user and password are `guest`.
#[derive(Debug)]
pub struct RabbitMq {
    node: Option<Managed>,
    // Field order is the order of the end: the node, then its port mapper, then their folder.
    port_mapper: Managed,
    home: Home,
    ports: Ports,
}

#[derive(Debug)]
struct Ports {
    amqp: u16,
    management: u16,
    distribution: u16,
    mapper: u16,
}

impl RabbitMq {
    /// A new, empty, running node. Takes some seconds.
    pub async fn start() -> Result<Self> {
        let home = Home::create("rabbitmq")?;
        let ports = Ports {
            amqp: ports::free()?,
            management: ports::free()?,
            distribution: ports::free()?,
            mapper: ports::free()?,
        };
        home.write(".erlang.cookie", &Uuid::new_v4().simple().to_string())?;
        std::fs::set_permissions(
            home.file(".erlang.cookie"),
            std::os::unix::fs::PermissionsExt::from_mode(0o400),
        )?;
        home.write("enabled_plugins", "[rabbitmq_management].")?;
        home.write("rabbitmq.conf", &configuration(&ports))?;
        let mapper = with_variables(home.command("epmd"), &home, &ports);
        let port_mapper = home
            .spawn("epmd", &mapper, LastWord::Kill)
            .context("RabbitMQ's Erlang is missing: deploy/install-services installs it")?;
        let mut rabbitmq = Self { node: None, port_mapper, home, ports };
        rabbitmq.start_again().await?;
        Ok(rabbitmq)
    }

    /// Address of the vhost `/`.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Address of the management API, with user and password.
    pub fn management_url(&self) -> String {
        format!("http://guest:guest@127.0.0.1:{}/", self.ports.management)
    }

    /// A new, empty vhost. It goes with this node.
    pub async fn vhost(&self) -> Result<Vhost> {
        Vhost::create(&self.amqp_url(), &self.management_url(), false).await
    }

    /// Ends the node in order, as an operator's restart does; takes some seconds.
    pub async fn stop(&mut self) -> Result<()> {
        self.node.take().context("RabbitMQ is stopped already")?.stop(Signal::TERM, STOP).await?;
        Ok(())
    }

    /// `kill -9` of the node; its data and ports stay.
    pub fn kill(&mut self) -> Result<()> {
        self.node.take().context("RabbitMQ is stopped already")?.kill()
    }

    /// Starts a stopped or killed node on the same data and ports and returns when it takes connections.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.node.is_none(), "RabbitMQ runs already");
        ensure!(self.port_mapper.is_running()?, "epmd has ended: {}", self.port_mapper.log_tail());
        let mut command = self.command("rabbitmq-server");
        // With "input" the script replaces itself by the node, whose pid is then the one we know.
        command.arg("-noinput").env("RABBITMQ_ALLOW_INPUT", "1");
        let (amqp, management) = (self.amqp_url(), self.management_url());
        let node = self.node.insert(self.home.spawn("rabbitmq", &command, LastWord::Kill)?);
        node.ready(START, async || {
            request(&management, Method::GET, "api/overview").await?;
            Ok(connect(&amqp).await?.0.close(200, "ready".into()).await?)
        })
        .await
    }

    /// Sets the memory alarm: publishers are blocked from now on.
    pub async fn set_memory_alarm(&self) -> Result<()> {
        self.memory_watermark("0.00001", true).await
    }

    /// Clears the memory alarm.
    pub async fn clear_memory_alarm(&self) -> Result<()> {
        self.memory_watermark("0.6", false).await
    }

    async fn memory_watermark(&self, fraction: &str, alarmed: bool) -> Result<()> {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", fraction]).await?;
        let url = self.management_url();
        until("the memory alarm follows", ANSWER, async || {
            let answer = request(&url, Method::GET, "api/health/checks/local-alarms").await;
            ensure!(answer.is_err() == alarmed, "alarm: {answer:?}");
            Ok(())
        })
        .await
    }

    /// Runs `rabbitmqctl` on this node and returns what it printed; takes a second.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("rabbitmqctl");
        command.args(arguments);
        let mut command = guarded(&command, self.home.account, LastWord::Kill);
        let done = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(
            done.status.success(),
            "rabbitmqctl {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Whether the node has not ended by itself.
    pub fn is_running(&mut self) -> Result<bool> {
        self.node.as_mut().map_or(Ok(false), Managed::is_running)
    }

    fn command(&self, program: &str) -> Command {
        // Debian's wrappers in the search path change folder and log to the host's files.
        let debian = Path::new(DEBIAN_PROGRAMS).join(program);
        let program = if debian.is_file() { debian } else { PathBuf::from(program) };
        with_variables(self.home.command(program), &self.home, &self.ports)
    }
}

fn configuration(ports: &Ports) -> String {
    format!(
        "listeners.tcp.default = 127.0.0.1:{}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {}\n\
         disk_free_limit.absolute = 50MB\n\
         log.console = true\n\
         log.console.level = warning\n",
        ports.amqp, ports.management
    )
}

fn with_variables(mut command: Command, home: &Home, ports: &Ports) -> Command {
    let file = |name: &str| home.file(name).into_os_string();
    command.env("LC_ALL", "C.UTF-8");
    command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", ports.mapper.to_string());
    command.env("RABBITMQ_NODENAME", format!("jobgate-{}@localhost", ports.amqp));
    command.env("RABBITMQ_DIST_PORT", ports.distribution.to_string());
    command.env("RABBITMQ_MNESIA_BASE", file("data")).env("RABBITMQ_LOG_BASE", file("log"));
    command.env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"));
    command.env("RABBITMQ_CONFIG_FILE", file("rabbitmq")).env("RABBITMQ_CONF_ENV_FILE", file("none"));
    command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", LOOPBACK_DISTRIBUTION);
    command.env("RABBITMQ_CTL_ERL_ARGS", LOOPBACK_DISTRIBUTION);
    command
}

async fn connect(url: &str) -> Result<(Connection, Channel)> {
    let opening = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    };
    timeout(ANSWER, opening).await.context("RabbitMQ does not answer")?
}

/// One request to the management API at `base`; an answer other than 2xx is an error.
async fn request(base: &str, method: Method, path: &str) -> Result<()> {
    // reqwest wants a provider even where no TLS is spoken; an error says that there is one already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let url = Url::parse(base).context("the address of RabbitMQ's management API")?.join(path)?;
    let client = Client::builder().no_proxy().timeout(ANSWER).build()?;
    client.request(method, url).send().await?.error_for_status()?;
    Ok(())
}

/// An empty vhost of one test. On the run's broker it is removed with this value, and its connections with it.
#[derive(Debug)]
pub struct Vhost {
    url: String,
    name: String,
    management_url: String,
    shared: bool,
}

impl Vhost {
    /// A new vhost on the run's broker.
    pub async fn fresh() -> Result<Self> {
        Self::create(&required(AMQP_URL)?, &required(MANAGEMENT_URL)?, true).await
    }

    /// Its `amqp://` address, with user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Messages ready in `queue` (those a consumer holds are not counted). An error if there is no such queue.
    pub async fn queue_depth(&self, queue: &str) -> Result<u32> {
        let (connection, channel) = connect(&self.url).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let answer = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        connection.close(200, "counted".into()).await?;
        Ok(answer.message_count())
    }

    /// Removes what is ready in `queue`; returns how many messages that were.
    pub async fn purge(&self, queue: &str) -> Result<u32> {
        let (connection, channel) = connect(&self.url).await?;
        let purged = channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        connection.close(200, "purged".into()).await?;
        Ok(purged)
    }

    /// Deletes `queue` with all it holds; its consumers are cancelled.
    pub async fn delete_queue(&self, queue: &str) -> Result<()> {
        let (connection, channel) = connect(&self.url).await?;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(connection.close(200, "deleted".into()).await?)
    }

    async fn create(amqp_url: &str, management_url: &str, shared: bool) -> Result<Self> {
        let name = format!("test-{}", Uuid::new_v4().simple());
        let mut url = Url::parse(amqp_url).context("the address of the test broker")?;
        url.set_path(&name);
        let vhost = Self { url: url.into(), name, management_url: management_url.into(), shared };
        // Whoever creates a vhost by the API gets every permission in it.
        vhost.administer(Method::PUT).await?;
        Ok(vhost)
    }

    async fn administer(&self, method: Method) -> Result<()> {
        request(&self.management_url, method, &format!("api/vhosts/{}", self.name)).await
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if self.shared {
            finish("remove a test's vhost", || self.administer(Method::DELETE));
        }
    }
}
