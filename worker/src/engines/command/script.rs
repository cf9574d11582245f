//! What a scheduler is given to run, and what that runs.
//!
//! The submitted script holds nothing a user wrote: a path, a limit. So no value can become a directive of the scheduler
//! (`#SBATCH`, `#$`, `#PBS`), nor lie in its spool. The user's part is a second file beside it, which only the first reads.

use crate::engines::local::{config::DEFAULT_PATH, records::Failure};
use jobgate_shared::domain::JobSpec;
use std::{collections::BTreeMap, time::Duration};

/// The submitted script. It takes the start token, which the filesystem gives once, so a scheduler that begins it again runs
/// nothing; its last word is `exit`, written once, by it or by whoever found it gone.
pub(super) fn wrapper(dir: &str, limit: Option<Duration>, grace: Duration) -> String {
    let dir = quoted(dir);
    let watch = limit.map_or(String::new(), |limit| {
        let (limit, grace) = (limit.as_secs(), grace.as_secs_f64());
        format!("watch {limit} {grace} </dev/null >/dev/null 2>&1 &\nwatchdog=$!\n")
    });
    format!(
        r#"#!/bin/sh
# Runs what lies in an attempt's directory, once, and writes down how it ended.
cd {dir} || exit 125
if ! (set -C; : > start) 2>/dev/null; then
    [ ! -f start ] || echo again >> again
    exit 125
fi
watch() {{
    trap 'kill "$nap"; exit' TERM
    sleep "$1" & nap=$!
    wait "$nap"
    : > out_of_time
    kill -TERM "$(cat pid)"
    sleep "$2" & nap=$!
    wait "$nap"
    kill -KILL "$(cat pid)"
}}
signaled=
trap 'signaled=1' TERM
trap : HUP INT QUIT USR1 USR2
watchdog=
{watch}/bin/sh ./payload </dev/null >>stdout 2>>stderr
code=$? before=$signaled
[ -z "$watchdog" ] || kill "$watchdog" 2>/dev/null
why=exited
if [ "$code" != 0 ] || [ -n "$before" ]; then
    [ -z "$before" ] || why=signaled
    [ ! -e cancel ] || why=canceled
fi
[ ! -e out_of_time ] || why=timed_out
echo "$why $code" > "exit.$$"
ln "exit.$$" exit 2>/dev/null || [ -e exit ] || mv "exit.$$" exit
rm -f "exit.$$"
[ "$code" = 0 ] || exit 1
"#
    )
}

/// What the submitted script runs: becomes the user's command, with its environment and in its directory.
pub(super) fn payload(dir: &str, spec: &JobSpec, env: &BTreeMap<String, String>) -> String {
    let program = spec.command.first().map_or("", String::as_str);
    let working_dir = spec.working_dir.clone().unwrap_or_else(|| format!("{dir}/work"));
    let place = quoted(&working_dir);
    let says = |exit_code: i32, reason: String| {
        let failure = serde_json::to_string(&Failure { exit_code, reason }).unwrap_or_default();
        format!("printf '%s' {} > {}", quoted(&failure), quoted(&format!("{dir}/failed")))
    };
    let no_place = says(127, format!("working directory {working_dir}: not there"));
    let closed_place = says(126, format!("working directory {working_dir}: cannot be entered"));
    let not_there = says(127, format!("command not found: {program}"));
    let not_runnable = says(126, format!("command cannot be run: {program}"));
    let mut text = format!(
        "echo $$ > pid\nrm -f payload\n\
        if ! cd -- {place} 2>/dev/null; then\n    if [ -e {place} ]; then {closed_place}; exit 126; fi\n    {no_place}; exit 127\nfi\n\
        not_run() {{\n    case $1 in\n    127) {not_there} ;;\n    126) {not_runnable} ;;\n    esac\n    exit \"$1\"\n}}\n\
        [ -n \"${{PATH-}}\" ] || PATH={DEFAULT_PATH}\nexport PATH\n\
        [ -z \"${{BASH_VERSION-}}\" ] || shopt -s execfail 2>/dev/null\n"
    );
    let words = spec.command.iter().map(|word| quoted(word));
    let script = spec.script.is_some().then(|| quoted(&format!("{dir}/script")));
    let words: Vec<String> = words.chain(script).collect();
    text.extend(["set -- ", &words.join(" "), "\n"]);
    for (name, value) in env {
        text.extend(["export ", name, "=", &quoted(value), "\n"]);
    }
    let input = spec.stdin.is_some().then(|| format!("{dir}/stdin"));
    let input = quoted(input.as_deref().unwrap_or("/dev/null"));
    // A shell whose exec failed ends, by way of the trap; bash, told so above, goes on.
    text.extend(["trap 'not_run $?' EXIT\nexec \"$@\" < ", &input, "\nnot_run $?\n"]);
    text
}

/// One word of a shell, whatever it holds.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
    };
    use std::process::Command;

    #[test]
    fn nothing_of_a_user_stands_in_what_the_scheduler_reads() {
        let text = wrapper("/shared/jobgate-x", Some(Duration::from_secs(5)), Duration::from_secs(1));
        let directives = ["#SBATCH", "#$", "#PBS", "#BSUB", "#FLUX"];
        assert!(!text.lines().any(|line| directives.iter().any(|begin| line.starts_with(begin))), "{text}");
    }

    /// Text a careless shell would take for something else.
    fn tricky() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            ".{0,8}",
            any::<String>(),
            Just("'; id; '".to_owned()),
            Just("\n#SBATCH --uid=0\n".to_owned()),
            Just("$(id) `id` $HOME \\".to_owned()),
            Just("'\\''\"\"".to_owned()),
            Just("-e".to_owned()),
            Just("EOF\n".to_owned()),
        ];
        text.prop_map(|text| text.replace('\0', ""))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn a_command_and_its_environment_come_through_the_shell_as_they_are(
            arguments in vec(tricky(), 0..4),
            values in btree_map("JG_[A-Z]{1,4}", tricky(), 0..4),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().to_str().unwrap();
            std::fs::create_dir(dir.path().join("work")).unwrap();
            let show = "for name in \"$@\"; do printf '<%s>\\0' \"$name\"; done; env -0 | grep -z ^JG_ | sort -z";
            let mut command: Vec<String> = ["/bin/sh", "-c", show, "show"].map(str::to_owned).to_vec();
            command.extend(arguments.clone());
            let spec = JobSpec { command, ..JobSpec::default() };
            std::fs::write(dir.path().join("payload"), payload(path, &spec, &values)).unwrap();
            let ran = Command::new("/bin/sh").arg("./payload").current_dir(path).output().unwrap();
            let mut expected = String::new();
            for argument in &arguments {
                expected.extend(["<", argument, ">\0"]);
            }
            let mut lines: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
            lines.sort();
            let got = String::from_utf8(ran.stdout).unwrap();
            let (said, env) = got.split_at(expected.len().min(got.len()));
            prop_assert_eq!(said, expected);
            let mut got: Vec<String> = env.split_inclusive('\0').map(str::to_owned).collect();
            got.sort();
            prop_assert_eq!(got, lines);
        }
    }
}
