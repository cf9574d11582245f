//! What a spec becomes, held against the spec: for tests and for fuzzing, never part of a release.

use super::{
    LocalConfig, RunnerCommand, exec,
    records::RunSpec,
    runner,
    spool::{Nonce, Place},
};
use crate::{engine::ToCreate, engines::EngineSettings as _};
use jobgate_shared::domain::{JobId, JobSpec, Project, SubmissionTag, identity_env};
use std::{collections::BTreeMap, ffi::OsStr, path::Path};
use uuid::Uuid;

/// If `spec` is taken, the process has exactly its arguments, its variables and its directory, whatever stands in them;
/// says whether it is.
pub fn is_exact(spec: &JobSpec) -> bool {
    let config = LocalConfig { max_cpus: Some(64), max_memory_mib: Some(1 << 20), ..LocalConfig::default() };
    if spec.check().is_err() || config.validate(spec).is_err() {
        return false;
    }
    let tag = SubmissionTag { job: JobId(Uuid::from_u128(7)), attempt: 3 };
    let project = Project::default_project();
    let job = ToCreate { tag, project: project.clone(), name: "--name".to_owned(), spec: spec.clone() };

    // On its way to the runner it is a file.
    let written = serde_json::to_vec(&RunSpec::of(&config, &job)).expect("plain values");
    let run: RunSpec = serde_json::from_slice(&written).expect("what was written");
    assert_eq!(run, RunSpec::of(&config, &job));
    assert_eq!((&run.stdin, &run.script), (&spec.stdin, &spec.script));
    assert_eq!(run.working_dir.as_deref(), spec.working_dir.as_ref().map(Path::new));

    let dir = Path::new("/spool/attempt");
    let command = exec::command(dir, &run).expect("a spec has a program");
    let argv: Vec<&OsStr> = [command.get_program()].into_iter().chain(command.get_args()).collect();
    let mut expected: Vec<&OsStr> = spec.command.iter().map(OsStr::new).collect();
    expected.extend(spec.script.is_some().then_some(OsStr::new("/spool/attempt/script")));
    assert_eq!(argv, expected);
    let identity = identity_env(tag.job, tag.attempt, &project, "--name");
    let mut env: BTreeMap<&str, &str> = BTreeMap::from([("PATH", super::config::DEFAULT_PATH)]);
    env.extend(spec.env.iter().chain(&identity).map(|(name, value)| (name.as_str(), value.as_str())));
    let given: BTreeMap<&str, &str> = command
        .get_envs()
        .map(|(name, value)| (text(name), text(value.expect("nothing is taken away"))))
        .collect();
    assert_eq!(given, env);

    // The runner is told where the file lies, and nothing that stands in it.
    let place = Place { tag, nonce: Nonce::parse("0123456789abcdef").expect("a nonce") };
    let own = RunnerCommand { program: "/proc/self/exe".into(), args: vec!["runner".into()] };
    let words = runner::command(&own, Path::new("/spool"), place);
    let words: Vec<&str> = words.get_args().map(text).collect();
    assert_eq!(words, ["runner", "run", "/spool", &tag.to_string(), "0123456789abcdef", "runner"]);
    true
}

fn text(word: &OsStr) -> &str {
    word.to_str().expect("a spec is text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::domain::Resources;
    use proptest::{
        collection::{btree_map, vec},
        option::of,
        prelude::*,
    };

    /// Text that a careless program would take for something else.
    fn tricky() -> impl Strategy<Value = String> {
        prop_oneof![
            ".{0,8}",
            any::<String>(),
            "-{1,2}[a-z]{0,6}(=[a-z]{0,3})?",
            Just("; rm -rf /".to_owned()),
            Just("$(id) `id` $HOME".to_owned()),
            Just("a\0b".to_owned()),
            Just("two\nlines\r\n".to_owned()),
            Just("\u{202e}%s%n\\'\"".to_owned()),
        ]
    }

    fn spec() -> impl Strategy<Value = JobSpec> {
        let name = prop_oneof![9 => "[A-Za-z_][A-Za-z0-9_]{0,6}", 1 => tricky(), 1 => Just("JOBGATE_JOB_ID".to_owned())];
        let texts = (of(tricky()), of(tricky()), of("/[a-z./ -]{0,8}"), of(tricky()));
        let resources = (of(1..70_u32), of(1..1000_u64)).prop_map(|(cpus, memory_mib)| Resources {
            cpus,
            memory_mib,
            ..Resources::default()
        });
        (vec(tricky(), 0..5), btree_map(name, tricky(), 0..4), texts, resources, of(1..100_u64)).prop_map(
            |(command, env, (stdin, script, dir, odd_dir), resources, time_limit_seconds)| JobSpec {
                command,
                env,
                working_dir: odd_dir.filter(|dir| dir.len() == 3).or(dir),
                stdin,
                script,
                resources,
                time_limit_seconds,
                ..JobSpec::default()
            },
        )
    }

    proptest! {
        #[test]
        fn a_spec_becomes_exactly_the_process_it_says_or_is_refused(spec in spec()) {
            let texts = spec.command.iter().chain(spec.env.values()).chain(&spec.script).chain(&spec.working_dir);
            let nul = texts.into_iter().any(|text| text.contains('\0'));
            let odd = |name: &String| !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let taken = is_exact(&spec);
            prop_assert!(!taken || !nul && !spec.env.keys().any(odd) && !spec.command[0].is_empty());
        }
    }
}
