//! What a job becomes: the request that submits it, and its batch script.
//!
//! No text of a user's stands where something could take it for an option, a directive or a command: arguments and variables
//! are single-quoted and never begin a line, so no `#SBATCH` can be made of them; standard input and script are base64
//! between two lines of ours.
//!
//! The script waits for the command and leaves its exit code in a file beside the output, since slurmctld forgets jobs within
//! minutes and slurmdbd cannot be believed (see [`super::state`]). It outlives the signals Slurm sends to the whole job, so
//! that a command which takes its time to end has all the time Slurm gives; and it passes on the SIGTERM that Slurm sends to
//! the batch script alone before they kill, to the command and what that started.

use super::config::{DEFAULT_PATH, OPTIONS, SlurmConfig};
use crate::engine::ToCreate;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jobgate_shared::domain::identity_env;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// Ends a text in base64, which has no '_'.
const END: &str = "JOBGATE_END";
/// Characters of base64 in a line.
const LINE: usize = 76;

/// Looks for the program in `$2` as the job's own environment would, so that what cannot be run is told apart from a command
/// that ends with the same code.
const LOOK: &str = r#"
look() {
    case $1 in
        */*) found=$1 ;;
        *) found=$(PATH=$2 command -v "$1") || found= ;;
    esac
    case $found in
        '') echo "$1: command not found" >"$scratch/why"; exit 127 ;;
        */*) ;;
        *) return 0 ;;
    esac
    if [ ! -e "$found" ]; then echo "$found: no such file" >"$scratch/why"; exit 127; fi
    if [ -d "$found" ] || [ ! -x "$found" ]; then echo "$found: cannot be executed" >"$scratch/why"; exit 126; fi
}
"#;

/// A slurmctld that was killed before it had saved that a job began lets it begin once more, and says nothing. What has begun
/// before is not run again: its end is told, if it came to one, and else that it was begun again, which is no end: the first
/// may still run.
const ONCE: &str = r#"
if ! (set -C; : >"$exit_file.start") 2>/dev/null; then
    if [ -e "$exit_file" ]; then
        read -r code rest <"$exit_file"
        case $code in ''|*[!0-9]*) exit 125 ;; esac
        exit "$code"
    fi
    if [ -e "$exit_file.start" ]; then
        echo 'begun again' >"$exit_file.$$"
        ln "$exit_file.$$" "$exit_file" 2>/dev/null
        rm -f "$exit_file.$$"
    fi
    exit 125
fi
"#;

/// Waits for the command in the background, since a shell that waits for one in the foreground heeds no signal meanwhile, and
/// tells it of a SIGTERM. What a shell begins in the background ignores SIGINT and SIGQUIT, which only an `env` that can undo it
/// makes good; where it cannot, the command is not told.
///
/// Told is all that is in the script's group, which it leads under Slurm: a shell that waits for a program would die, and the
/// program not know; and the command itself where it moved to another. (In this group its line in /proc names the script as its
/// parent and as its group.) The script then stays until nothing is left in the group, since Slurm kills at once what it leaves.
///
/// A shell that was just forked has the traps of its parent still, and loses the signal that comes then: a file says that it
/// came. A wait that a signal broke off is taken up again. It says 127 if the command was waited for already, which it cannot
/// have been if the signal still met it; and bash says -1 if the command ended in the very moment of the signal and its code is
/// lost.
const RUN: &str = r#"
heard() {
    again=1
    [ -n "$command" ] || return 1
    kill -0 "$command" 2>/dev/null || { gone=1; return 1; }
}
tell() {
    signal='{SIGNALED}'
    echo 2>/dev/null >"$scratch/told"
    heard || return 0
    trap '' TERM
    kill -s TERM -- "-$$" 2>/dev/null
    { read -r stat <"/proc/$command/stat"; } 2>/dev/null || stat=
    case ${stat##*)} in
        " "?" $$ $$ "*) ;;
        *) kill -s TERM "$command" 2>/dev/null ;;
    esac
    trap tell TERM
}
others() {
    for other in /proc/[0-9]*; do
        { read -r stat <"$other/stat"; } 2>/dev/null || continue
        set -- "${other#/proc/}" ${stat##*)}
        [ "$1" = "$$" ] || [ "$2" = Z ] || [ "$4" != "$$" ] || return 0
    done
    return 1
}
command=
trap tell TERM
[ -z "$signal" ] || tell
if env --default-signal=INT,QUIT true 2>/dev/null; then
    own=--default-signal=INT,QUIT
    trap heard HUP INT QUIT USR1 USR2 XCPU
    begin &
    command=$! code='' gone='' again=1
    [ -z "$signal" ] || tell
    while [ -n "$again" ]; do
        again=
        wait "$command"
        now=$?
        case $code,$now,$gone in
            ?*,127,1|?*,-1,*) ;;
            *) code=$now ;;
        esac
    done
    while [ -n "$signal" ] && others; do sleep 0.1; done
else
    own=
    (begin)
    code=$?
fi
"#;

/// What is left in the place of an exit code by what was begun again.
pub(super) const BEGUN_AGAIN: &str = "begun again";
/// What follows an exit code when Slurm had told the job to end before.
pub(super) const SIGNALED: &str = " after a signal";

/// The script of a job. `exit_file`: where it leaves its exit code.
pub(super) fn render(config: &SlurmConfig, job: &ToCreate, exit_file: Option<&Path>) -> String {
    let spec = &job.spec;
    let mut env: BTreeMap<&str, &str> = BTreeMap::from([("PATH", DEFAULT_PATH)]);
    let identity = identity_env(job.tag.job, job.tag.attempt, &job.project, &job.name);
    for (name, value) in config.env.iter().chain(&spec.env).chain(&identity) {
        env.insert(name, value);
    }
    let mut text = String::from("#!/bin/sh\n");
    let mut line = |words: &str| {
        text.push_str(words);
        text.push('\n');
    };
    line("nl='\n'");
    if let Some(exit_file) = exit_file.and_then(Path::to_str) {
        line("umask 022");
        line(&format!("exit_file={}", quote(exit_file)));
        line(ONCE);
    }
    line("signal=");
    line(&format!("trap 'signal=\"{SIGNALED}\"' TERM"));
    line("trap : HUP INT QUIT USR1 USR2 XCPU");
    line("scratch=$(mktemp -d \"${TMPDIR:-/tmp}/jobgate.XXXXXX\") || exit 125");
    line("trap 'rm -rf \"$scratch\"' EXIT");
    line(LOOK);
    let mut input = "/dev/null";
    for (name, content) in [("stdin", &spec.stdin), ("script", &spec.script)] {
        if let Some(content) = content {
            line(&format!("base64 -d >\"$scratch/{name}\" <<'{END}' || exit 125"));
            for piece in STANDARD.encode(content).as_bytes().chunks(LINE) {
                line(&String::from_utf8_lossy(piece));
            }
            line(END);
        }
    }
    if spec.stdin.is_some() {
        input = "\"$scratch/stdin\"";
    }
    let dir = spec.working_dir.as_deref().or_else(|| config.working_dir.as_deref().and_then(Path::to_str));
    let (dir, missing) = match dir {
        Some(dir) => (quote(dir), quote(&format!("{dir}: cannot be entered"))),
        None => ("\"$scratch\"".to_owned(), quote("its directory cannot be entered")),
    };
    line("begin() {");
    line("[ ! -e \"$scratch/told\" ] || exit 143");
    line(&format!("cd {dir} || {{ echo {missing} >\"$scratch/why\"; exit 127; }}"));
    let program = spec.command.first().map_or("", String::as_str);
    line(&format!("look {} {}", quote(program), quote(env.get("PATH").copied().unwrap_or(DEFAULT_PATH))));
    line("exec env $own \\");
    for (name, value) in &env {
        line(&format!("{name}={} \\", quote(value)));
    }
    for argument in &spec.command {
        line(&format!("{} \\", quote(argument)));
    }
    if spec.script.is_some() {
        line("\"$scratch/script\" \\");
    }
    line(&format!("<{input}"));
    line("}");
    line(&RUN.replace("{SIGNALED}", SIGNALED));
    if exit_file.is_some() {
        line(
            "umask 022 && { echo \"$code$signal\"; cat \"$scratch/why\" 2>/dev/null; true; } >\"$exit_file.new\" && mv \"$exit_file.new\" \"$exit_file\"",
        );
    }
    line("exit \"$code\"");
    text
}

/// A word of the shell that is exactly `text`, within one line.
fn quote(text: &str) -> String {
    let mut word = String::with_capacity(text.len() + 2);
    word.push('\'');
    for c in text.chars() {
        match c {
            '\'' => word.push_str(r"'\''"),
            '\n' => word.push_str("'\"$nl\"'"),
            c => word.push(c),
        }
    }
    word.push('\'');
    word
}

/// Where a job's output goes and its exit code is left, as Slurm is told: it puts the job's id for `%j`.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// The request that submits a job, held, in the shape of an API version.
pub(super) fn request(
    config: &SlurmConfig,
    version: &str,
    job: &ToCreate,
    names: (&str, &str),
    outputs: &Outputs,
    script: String,
) -> Result<Value, String> {
    let (name, comment) = names;
    let wants = job.spec.resources;
    let new = is_structured(version);
    let mut fields = Map::new();
    let mut set = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    let number = |number: u64| {
        if new { json!({"set": true, "infinite": false, "number": number}) } else { json!(number) }
    };
    set("name", name.into());
    set("comment", comment.into());
    set("hold", true.into());
    // v0.0.38 takes the mere presence of the key for a yes.
    if new {
        set("requeue", false.into());
    }
    // The script goes where the job shall run, and can say when it cannot.
    set("current_working_directory", "/".into());
    set(
        "environment",
        if new { json!([format!("PATH={DEFAULT_PATH}")]) } else { json!({"PATH": DEFAULT_PATH}) },
    );
    set("standard_input", "/dev/null".into());
    set("standard_output", outputs.stdout.as_str().into());
    set("standard_error", outputs.stderr.as_str().into());
    let nodes = wants.nodes.unwrap_or(1);
    set("nodes", nodes.to_string().into());
    set("tasks", nodes.into());
    if let Some(cpus) = wants.cpus {
        set("cpus_per_task", cpus.into());
    }
    if let Some(memory) = wants.memory_mib {
        set("memory_per_node", number(memory));
    }
    if let Some(gpus) = wants.gpus {
        if !new {
            return Err(format!("slurmrestd's {version} cannot ask for accelerators"));
        }
        set("tres_per_node", format!("gres/gpu:{gpus}").into());
    }
    if let Some(seconds) = job.spec.time_limit_seconds {
        set("time_limit", number(seconds.div_ceil(60)));
    }
    for (option, key) in OPTIONS {
        let asked = job.spec.engine.get(option).and_then(Value::as_str);
        if let Some(value) = asked.or_else(|| config.defaults.get(option).map(String::as_str)) {
            set(key, value.into());
        }
    }
    if new {
        set("script", script.into());
        Ok(json!({"job": fields}))
    } else {
        Ok(json!({"job": fields, "script": script}))
    }
}

/// From v0.0.39 on numbers can be structures and an environment is a list.
fn is_structured(version: &str) -> bool {
    version.rsplit('.').next().and_then(|last| last.parse::<u32>().ok()).is_some_and(|last| last >= 39)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_within_its_word_and_its_line() {
        for (text, word) in [
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(id) `id` \\", r"'$(id) `id` \'"),
            ("a\n#SBATCH --uid=0", "'a'\"$nl\"'#SBATCH --uid=0'"),
        ] {
            assert_eq!(quote(text), word);
        }
    }
}
