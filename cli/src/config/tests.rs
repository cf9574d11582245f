//! One bad file per kind of fault, and what the sample and the documentation promise.

use super::*;
use proptest::{collection::vec, prelude::*, sample::Index, sample::select};

fn complaint(text: &str) -> String {
    parse(Path::new("jobgate.toml"), text).unwrap_err().to_string()
}

#[test]
fn an_unknown_key_is_refused_with_line_and_the_keys_there_are() {
    let said = complaint("data_dir = \"d\"\n[api]\nlissten = \"127.0.0.1:1\"\n");
    assert!(said.starts_with("jobgate.toml:3: api.lissten: unknown key `lissten`, expected"), "{said}");
    assert!(said.contains("`listen`"), "{said}");
}

#[test]
fn an_unknown_section_is_refused() {
    let said = complaint("\n[wroker]\nslots = 1\n");
    assert!(said.starts_with("jobgate.toml:2: wroker: unknown key `wroker`"), "{said}");
}

#[test]
fn a_wrong_type_is_refused_at_its_key() {
    let said = complaint("[telemetry]\n\nlog = 5\n");
    assert_eq!(said, "jobgate.toml:3: telemetry.log: invalid type: integer `5`, expected a string");
}

#[test]
fn an_impossible_value_is_refused_at_its_key() {
    let said = complaint("[api]\nlisten = \"localhost\"\n");
    assert!(said.starts_with("jobgate.toml:2: api.listen: invalid socket address"), "{said}");
    let said = complaint("[telemetry]\nlog_format = \"xml\"\n");
    assert_eq!(
        said,
        "jobgate.toml:2: telemetry.log_format: unknown value `xml`, expected one of `auto`, `text`, `json`"
    );
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    let said = complaint("[api]\nlisten = \n");
    assert!(said.starts_with("jobgate.toml:2: "), "{said}");
    let said = complaint("[api]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n");
    assert!(said.starts_with("jobgate.toml:3: ") && said.contains("duplicate key"), "{said}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(
        &Flags { config: Some("/nonexistent/jobgate.toml".into()), ..Flags::default() },
        &Environment::default(),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration /nonexistent/jobgate.toml");
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

#[test]
fn the_environment_beats_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jobgate.toml");
    let flags = Flags { config: Some(file.clone()), ..Flags::default() };
    std::fs::write(&file, "data_dir = \"a\"\n[telemetry]\nlog = \"debug\"\n").unwrap();
    let variables =
        environment(&[("JOBGATE_DATA_DIR", "b"), ("JOBGATE_LISTEN", "127.0.0.1:9"), ("JOBGATE_LOG", "")]);
    let config = Config::load(&flags, &variables).unwrap();
    assert_eq!(config.data_dir, Path::new("b"));
    assert_eq!(config.api.listen.port(), 9);
    assert_eq!(config.telemetry.log, "debug", "an empty variable is as good as none");
}

#[test]
fn a_bad_variable_is_refused_by_name_and_an_unknown_one_is_told() {
    let error = Config::load(&Flags::default(), &environment(&[("JOBGATE_LISTEN", "here")])).unwrap_err();
    assert_eq!(error.to_string(), "environment variable JOBGATE_LISTEN: invalid socket address syntax");
    let seen = environment(&[("JOBGATE_LISTN", "x"), ("JOBGATE_JOB_ID", "y"), ("JOBGATE_LOG", "info")]);
    assert_eq!(seen.unknown, ["JOBGATE_LISTN"]);
}

#[test]
fn a_configuration_can_be_printed_without_its_secrets() {
    let variables = environment(&[
        ("JOBGATE_DATABASE_URL", "postgres://u:hunter2@h/d"),
        ("JOBGATE_BROKER_URL", "amqp://u:hunter2@h"),
        ("JOBGATE_ADMIN_TOKEN", "jgt_hunter2-and-what-makes-it-long-enough"),
        ("JOBGATE_TOKEN", "jgt_hunter2"),
    ]);
    let config = Config::load(&Flags::default(), &variables).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
}

#[test]
fn a_fault_inside_a_cluster_is_told_at_its_own_line() {
    let text = "[clusters.fast]\nengine = \"noop\"\nmax_calls = 4\nrun_for = \"soon\"\n";
    let said = complaint(text);
    assert!(said.starts_with("jobgate.toml:4: clusters.fast.run_for: \"soon\" is not a duration"), "{said}");
    let said = complaint("[clusters.fast]\nengine = \"noop\"\nrunfor = \"1s\"\n");
    assert!(said.starts_with("jobgate.toml:3: clusters.fast.runfor: unknown key `runfor`"), "{said}");
    let said = complaint("[clusters.fast]\nengine = \"noop\"\nmax_calls = 0\n");
    assert!(said.starts_with("jobgate.toml:3: clusters.fast.max_calls: 0 is not within 1 to 1024"), "{said}");
    let said = complaint("[clusters.fast]\nengine = \"sloth\"\n");
    assert!(said.starts_with("jobgate.toml:2: clusters.fast.engine: unknown value `sloth`"), "{said}");
    let said = complaint("[clusters.fast]\nmax_calls = 1\n");
    assert_eq!(said, "jobgate.toml:1: clusters.fast: missing key `engine`");
    let said = complaint("[clusters.\"A B\"]\nengine = \"noop\"\n");
    assert!(said.starts_with("jobgate.toml:1: ") && said.contains("must be 1 to 63"), "{said}");
    let said = complaint(
        "[clusters.fast]\nengine = \"noop\"\n[clusters.fast.regulator]\nkind = \"fixed\"\nmax_in_flight = 0\n",
    );
    assert!(said.starts_with("jobgate.toml:5: clusters.fast.regulator.max_in_flight: "), "{said}");
}

#[test]
fn settings_that_do_not_go_together_are_refused_at_the_one_to_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jobgate.toml");
    let flags = Flags { config: Some(file.clone()), ..Flags::default() };
    std::fs::write(&file, "[worker]\nlease = \"6s\"\nheartbeat = \"3s\"\n").unwrap();
    let said = Config::load(&flags, &Environment::default()).unwrap_err().to_string();
    assert!(said.ends_with(":3: worker.heartbeat: must be at most a third of worker.lease"), "{said}");
    std::fs::write(&file, "[worker]\nlease = \"6s\"\n").unwrap();
    let said = Config::load(&flags, &Environment::default()).unwrap_err().to_string();
    assert_eq!(said, "worker.heartbeat: must be at most a third of worker.lease", "a default has no line");
}

/// What a process that serves the API says of this file.
fn refusal(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jobgate.toml");
    std::fs::write(&file, text.replace("HERE", directory.path().to_str().unwrap())).unwrap();
    std::fs::write(directory.path().join("good.pem"), CERTIFICATE).unwrap();
    let flags = Flags { config: Some(file), serves: true, ..Flags::default() };
    let said = Config::load(&flags, &Environment::default()).unwrap_err().to_string();
    said.replace(directory.path().to_str().unwrap(), "").trim_start_matches('/').to_owned()
}

/// As far as anybody looks without its key.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

#[test]
fn what_could_not_work_is_refused_at_start_with_file_line_and_key() {
    let slurm = "[clusters.s]\nengine = \"slurm\"\nuser = \"u\"\ntoken_file = \"/t\"\n";
    let command = "[clusters.c]\nengine = \"command\"\npreset = \"pbs\"\nshared_dir = \"/s\"\n";
    for (text, expected) in [
        (
            "[api]\nadmin_token = \"too short\"\n".to_owned(),
            "2: api.admin_token: an administrator's token has at least 32 characters",
        ),
        (
            "[api]\nlisten = \"0.0.0.0:7070\"\n".to_owned(),
            "2: api.listen: 0.0.0.0:7070 can be reached from other hosts, where tokens",
        ),
        (
            "[api.tls]\ncertificate = \"HERE/none.pem\"\nkey = \"HERE/none.pem\"\n".to_owned(),
            "2: api.tls.certificate: /none.pem: ",
        ),
        (
            "[api.tls]\ncertificate = \"HERE/good.pem\"\nkey = \"HERE/none.pem\"\n".to_owned(),
            "3: api.tls.key: /none.pem: ",
        ),
        (
            "[store]\n\nurl = \"postgres://u:secret@h:port/d\"\n".to_owned(),
            "3: store.url: is no address of a database: invalid port number",
        ),
        ("[store]\nurl = \"h/d\"\n".to_owned(), "2: store.url: must begin with postgres://"),
        ("[reports]\nkey = \"short\"\n".to_owned(), "2: reports.key: "),
        (
            "[telemetry]\nlog = \"jobgate=loud\"\n".to_owned(),
            "2: telemetry.log: \"jobgate=loud\" is neither a level nor a filter: ",
        ),
        (
            "[telemetry]\nlisten = \"0.0.0.0:7071\"\n".to_owned(),
            "2: telemetry.listen: 0.0.0.0:7071 can be reached from other hosts, and whoever asks there needs no token",
        ),
        (
            "[clusters.here]\nengine = \"local\"\nmax_cpus = 1\numask = 512\n".to_owned(),
            "4: clusters.here.umask: umask must be 0 to 0o777",
        ),
        (
            "[clusters.here]\nengine = \"local\"\nspool_dir = \"spool\"\n".to_owned(),
            "3: clusters.here.spool_dir: spool_dir must be an absolute path",
        ),
        (
            "[clusters.n]\nengine = \"noop\"\nfailure_ratio = 2.0\n".to_owned(),
            "3: clusters.n.failure_ratio: failure_ratio must be 0 to 1",
        ),
        (format!("{slurm}url = \"slurm\"\n"), "5: clusters.s.url: url must begin with http://"),
        (
            format!("{command}[clusters.c.create]\nargv = [\"qsub\", \"{{nothing}}\"]\n"),
            "6: clusters.c.create.argv: create: argv: {nothing} is nothing that can stand here",
        ),
        // What is missing stands nowhere: the section it belongs into.
        (
            "[clusters.s]\nengine = \"slurm\"\n".to_owned(),
            "1: clusters.s: user or users must name an account",
        ),
    ] {
        let said = refusal(&text);
        assert!(said.starts_with(&format!("jobgate.toml:{expected}")), "{said}\n{text}");
        assert!(!said.contains("secret"), "{said}");
    }
}

#[test]
fn only_who_serves_the_api_needs_the_files_of_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jobgate.toml");
    std::fs::write(&file, "[api.tls]\ncertificate = \"/nonexistent\"\nkey = \"/nonexistent\"\n").unwrap();
    let load = |serves| {
        Config::load(
            &Flags { config: Some(file.clone()), serves, ..Flags::default() },
            &Environment::default(),
        )
    };
    assert!(load(false).is_ok());
    assert!(load(true).unwrap_err().to_string().contains("api.tls.certificate: /nonexistent: "));
}

#[test]
fn an_address_others_can_reach_needs_a_word_that_it_may() {
    let flags = Flags { listen: Some("0.0.0.0:7070".parse().unwrap()), ..Flags::default() };
    let said = Config::load(&flags, &Environment::default()).unwrap_err().to_string();
    assert!(said.starts_with("api.listen: 0.0.0.0:7070 can be reached from other hosts"), "{said}");
    assert!(Config::load(&flags, &environment(&[("JOBGATE_BEHIND_PROXY", "true")])).is_ok());
    let ops = ("JOBGATE_OPS_LISTEN", "[::]:7071");
    let said = Config::load(&Flags::default(), &environment(&[ops])).unwrap_err().to_string();
    assert!(said.starts_with("telemetry.listen: [::]:7071 can be reached from other hosts"), "{said}");
    let told = environment(&[ops, ("JOBGATE_OPS_PRIVATE_NETWORK", "true")]);
    assert!(Config::load(&Flags::default(), &told).is_ok());
}

#[test]
fn the_configurations_for_containers_are_good() {
    for place in ["compose", "kubernetes"] {
        let config = Some(root().join("deploy").join(place).join("jobgate.toml"));
        Config::load(&Flags { config, ..Flags::default() }, &Environment::default()).unwrap();
    }
}

#[test]
fn jobs_that_name_no_cluster_go_where_that_is_clear() {
    let default =
        |text: &str| parse(Path::new("x"), text).unwrap().default_cluster().map(|name| name.to_string());
    assert_eq!(default("").as_deref(), Some("local"), "one on this host when none is configured");
    assert_eq!(default("[clusters.a]\nengine = \"noop\"\n").as_deref(), Some("a"));
    let two = "[clusters.a]\nengine = \"noop\"\n[clusters.b]\nengine = \"noop\"\n";
    assert_eq!(default(two), None);
    assert_eq!(default(&format!("default_cluster = \"b\"\n{two}")).as_deref(), Some("b"));
    let absent = parse(Path::new("x"), "default_cluster = \"b\"\n").unwrap().check().err().unwrap();
    assert_eq!(
        (absent.key.as_str(), absent.message.as_str()),
        ("default_cluster", "there is no [clusters.b]")
    );
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sample with the lines that show something in force: those that begin with `mark`.
fn sample(mark: &str) -> String {
    let text = std::fs::read_to_string(root().join("deploy/jobgate.toml")).unwrap();
    let shown = |line: &str| match line.strip_prefix(mark) {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest.to_owned(),
        Some(_) | None => line.to_owned(),
    };
    text.lines().map(|line| shown(line) + "\n").collect()
}

#[test]
fn the_sample_shows_the_defaults_and_its_examples_are_good() {
    assert_eq!(parse(Path::new("jobgate.toml"), &sample("#")).unwrap(), Config::default());
    let examples = parse(Path::new("jobgate.toml"), &sample("#: ")).unwrap();
    examples.check().map_err(|conflict| format!("{}: {}", conflict.key, conflict.message)).unwrap();
    assert!(examples.api.tls.is_some() && examples.clusters.len() == 1);
}

/// What stands in the place of a value: of every type, near the bounds, and no TOML.
fn values() -> impl Strategy<Value = String> {
    let known = [
        "0",
        "1",
        "-1",
        "true",
        "\"\"",
        "\"10s\"",
        "\"64 MiB\"",
        "[]",
        "{}",
        "1.5",
        "\"127.0.0.1:1\"",
        "\"local\"",
        "inf",
    ];
    prop_oneof![
        select(known.to_vec()).prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|text| format!("{text:?}")),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn a_sample_with_anything_changed_is_read_or_told_where_it_is_wrong(
        examples: bool,
        changes in vec((any::<Index>(), values(), 0..5_u8), 1..4),
    ) {
        let text = sample(if examples { "#: " } else { "#" });
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (place, value, how) in changes {
            let at = place.index(lines.len());
            let key = lines[at].split_once(" = ").map(|(key, _)| key.to_owned());
            match (how, key) {
                (0, _) => drop(lines.remove(at)),
                (1, _) => lines.insert(at, value),
                (2, _) => lines.insert(at, format!("{} = 1", value.replace(['\n', '\r'], ""))),
                (_, Some(key)) => lines[at] = format!("{key} = {value}"),
                (_, None) => lines[at] = value,
            }
        }
        is_told(&lines.join("\n"));
    }

    #[test]
    fn a_wrong_value_is_told_at_its_own_line_and_key(place: Index) {
        let text = sample("#");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let with_value: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains(" = ") && !lines[*at].starts_with('#')).collect();
        let at = *place.get(&with_value);
        let key = lines[at].split_once(" = ").unwrap().0.to_owned();
        // No setting is a date.
        lines[at] = format!("{key} = 1979-05-27");
        let said = complaint(&lines.join("\n"));
        prop_assert!(said.starts_with(&format!("jobgate.toml:{}: ", at + 1)), "{}", said);
        prop_assert!(said.split(": ").nth(1).unwrap().ends_with(&key), "{}", said);
    }
}

/// Every key with its default as TOML writes it; nothing for a key without one.
fn keys(prefix: &str, value: &serde_json::Value, found: &mut Vec<(String, String)>) {
    for (key, value) in value.as_object().unwrap() {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if value.as_object().is_some_and(|inner| !inner.is_empty()) {
            keys(&path, value, found);
        } else if value.is_null() {
            found.push((path, String::new()));
        } else {
            found.push((path, format!("`{value}`")));
        }
    }
}

#[test]
fn every_key_is_documented_with_its_default() {
    use jobgate_worker::engines::{
        external::ExternalConfig, local::LocalConfig, noop::NoopConfig, slurm::SlurmConfig,
    };
    let documented = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let mut found = Vec::new();
    keys("", &serde_json::to_value(Config::default()).unwrap(), &mut found);
    found.retain(|(key, _)| key != "clusters");
    let here = serde_json::to_value(ClusterSection::here()).unwrap();
    keys("", &here, &mut found);
    keys("", &serde_json::to_value(NoopConfig::default()).unwrap(), &mut found);
    keys("", &serde_json::to_value(ExternalConfig::default()).unwrap(), &mut found);
    keys("", &serde_json::to_value(LocalConfig::default()).unwrap(), &mut found);
    keys("", &serde_json::to_value(SlurmConfig::default()).unwrap(), &mut found);
    for (key, default) in found {
        // Which engine is the one thing of a cluster that must be said.
        let default = if key == "engine" { String::new() } else { default };
        let row = format!("| `{key}` | {default}{}| ", if default.is_empty() { "" } else { " " });
        assert!(documented.contains(&row), "docs/configuration.md lacks the row {row}");
    }
    for (variable, _) in environment::VARIABLES {
        assert!(documented.contains(&format!("| `{variable}` | ")), "docs/configuration.md lacks {variable}");
    }
    for line in crate::exit::HELP.lines().skip(1) {
        let (code, meaning) = line.trim().split_once(' ').unwrap();
        let row = format!("| {code} | {} |", meaning.trim());
        assert!(documented.contains(&row), "docs/configuration.md lacks the row {row}");
    }
}
