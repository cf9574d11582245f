//! A scheduler with a command line, over one directory: it holds jobs, runs them without cleaning their output or minding
//! their names, ends them with all they started, and fails in the ways a file `fault-<command>` says.
//!
//! ```text
//! <dir>/jobs/<id>/    name, script, output, held | supervisor, cancel, ended
//! <dir>/forgets       what has ended is shown no more
//! <dir>/calls         one line for every command
//! ```

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use serde_json::json;
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// `scheduler <dir> <command> <argument>…`
pub(crate) fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let [dir, verb, rest @ ..] = args.as_slice() else { panic!("{args:?}") };
    let dir = Path::new(dir);
    if verb != "run" {
        let mut calls = fs::File::options().append(true).create(true).open(dir.join("calls")).unwrap();
        calls.write_all(format!("{verb} {}\n", rest.join(" ")).as_bytes()).unwrap();
    }
    let fault = fs::read_to_string(dir.join(format!("fault-{verb}"))).unwrap_or_default();
    match fault.as_str() {
        "hang" => hang(),
        "garbage" => {
            println!("Welcome to the cluster!\n<<<{{");
            return ExitCode::SUCCESS;
        }
        "flood" => loop {
            println!("{}", "x".repeat(4096));
        },
        "fail" => return refuse(1, "socket timed out"),
        "reject" => return refuse(1, "no such queue"),
        "full" => return refuse(1, "only 2 jobs are allowed"),
        "odd status" => return refuse(42, "?"),
        "" | "hang after" => {}
        other => panic!("{other}"),
    }
    let code = match verb.as_str() {
        "submit" => submit(dir, rest),
        "release" => release(dir, &rest[0]),
        "cancel" => cancel(dir, &rest[0]),
        "list" => list(dir),
        "show" => show(dir, rest),
        "run" => run(dir, &rest[0]),
        other => panic!("{other}"),
    };
    if fault == "hang after" {
        hang();
    }
    code
}

/// With a child in the same process group.
fn hang() -> ! {
    drop(Command::new("sleep").arg("600").status());
    loop {
        sleep(Duration::from_mins(10));
    }
}

fn refuse(code: u8, why: &str) -> ExitCode {
    eprintln!("scheduler: {why}");
    ExitCode::from(code)
}

fn job(dir: &Path, id: &str) -> Option<PathBuf> {
    let path = dir.join("jobs").join(id);
    path.is_dir().then_some(path)
}

/// `submit hold|go <name> <output> <script or ->`
fn submit(dir: &Path, rest: &[String]) -> ExitCode {
    let [hold, name, output, script] = rest else { panic!("{rest:?}") };
    let text = if script == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        text
    } else {
        fs::read_to_string(script).unwrap()
    };
    fs::create_dir_all(dir.join("jobs")).unwrap();
    let mut id = 1 + fs::read_dir(dir.join("jobs")).unwrap().count();
    while fs::create_dir(dir.join("jobs").join(id.to_string())).is_err() {
        id += 1;
    }
    let path = dir.join("jobs").join(id.to_string());
    for (file, text) in [("script", &text), ("output", output), ("held", &String::new()), ("name", name)] {
        fs::write(path.join(file), text).unwrap();
    }
    println!("Submitted batch job {id}");
    if hold == "go" { release(dir, &id.to_string()) } else { ExitCode::SUCCESS }
}

fn release(dir: &Path, id: &str) -> ExitCode {
    let Some(path) = job(dir, id) else { return refuse(3, "no such job") };
    // Whoever takes the hold away starts it.
    if fs::rename(path.join("held"), path.join("was-held")).is_ok() {
        let mut command = Command::new("/proc/self/exe");
        command.arg("scheduler").arg(dir).args(["run", id]).env_clear().process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(command.spawn().unwrap());
    }
    ExitCode::SUCCESS
}

fn cancel(dir: &Path, id: &str) -> ExitCode {
    let Some(path) = job(dir, id) else { return refuse(3, "no such job") };
    fs::write(path.join("cancel"), "").unwrap();
    if fs::rename(path.join("held"), path.join("was-held")).is_ok() {
        end(&path, "CANCELED 0");
    }
    ExitCode::SUCCESS
}

fn end(path: &Path, how: &str) {
    fs::write(path.join("ended.new"), how).unwrap();
    fs::rename(path.join("ended.new"), path.join("ended")).unwrap();
}

/// State and exit code.
fn state(path: &Path) -> (String, String) {
    if let Ok(ended) = fs::read_to_string(path.join("ended")) {
        let (state, code) = ended.split_once(' ').unwrap();
        return (state.to_owned(), code.to_owned());
    }
    let held = path.join("held").exists();
    (if held { "HELD" } else { "RUNNING" }.to_owned(), "0".to_owned())
}

fn list(dir: &Path) -> ExitCode {
    let forgets = dir.join("forgets").exists();
    println!("ID|NAME|STATE|EXIT");
    for entry in fs::read_dir(dir.join("jobs")).into_iter().flatten().flatten() {
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else { continue };
        let (state, code) = state(&entry.path());
        if !(forgets && ["DONE", "CANCELED", "DIED"].contains(&state.as_str())) {
            println!("{}|{name}|{state}|{code}", entry.file_name().display());
        }
    }
    ExitCode::SUCCESS
}

/// Tells nothing about any when it does not know one.
fn show(dir: &Path, ids: &[String]) -> ExitCode {
    let mut jobs = serde_json::Map::new();
    for id in ids {
        let found = job(dir, id).and_then(|path| Some((fs::read_to_string(path.join("name")).ok()?, path)));
        let Some((name, path)) = found else { return refuse(3, "no such job") };
        let (state, code) = state(&path);
        jobs.insert(
            id.clone(),
            json!({"name": name, "state": [state], "end": {"code": code.parse::<i32>().unwrap()}}),
        );
    }
    println!("{}", json!({"jobs": jobs}));
    ExitCode::SUCCESS
}

/// How long what is told to end has for it.
const GRACE: Duration = Duration::from_millis(500);

/// All that came of a process, parents before children.
fn descendants(of: Pid) -> Vec<Pid> {
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        let path = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
        let children = fs::read_to_string(path).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        at += 1;
    }
    found.split_off(1)
}

fn tell(processes: &[Pid], signal: Signal) {
    for pid in processes {
        kill_process(*pid, signal).ok();
    }
}

/// Runs a job and whatever it starts to the end of all of it.
fn run(dir: &Path, id: &str) -> ExitCode {
    let path = job(dir, id).unwrap();
    let me = rustix::process::getpid();
    set_child_subreaper(Some(me)).unwrap();
    fs::write(path.join("supervisor"), me.to_string()).unwrap();
    let output = fs::read_to_string(path.join("output")).unwrap();
    let output = fs::File::options().append(true).create(true).open(output).ok();
    let mut command = Command::new("/bin/sh");
    command.arg(path.join("script")).env_clear().env("PATH", "/usr/bin:/bin").env("FAKE_JOB", id);
    command.stdin(Stdio::null());
    if let Some(output) = output {
        command.stdout(output.try_clone().unwrap()).stderr(output);
    }
    let mut child = command.spawn().unwrap();
    let how = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break format!("DONE {}", status.code().unwrap_or(-1));
        }
        if path.join("cancel").exists() {
            // As schedulers do: all of it is told to end, and killed when it does not.
            tell(&descendants(me), Signal::TERM);
            let deadline = Instant::now() + GRACE;
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                sleep(Duration::from_millis(2));
            }
            break "CANCELED 0".to_owned();
        }
        if path.join("kill").exists() {
            break "DIED 137".to_owned();
        }
        sleep(Duration::from_millis(2));
    };
    loop {
        let children = fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap_or_default();
        let children: Vec<Pid> =
            children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
        if children.is_empty() {
            break;
        }
        for pid in children {
            kill_process(pid, Signal::KILL).ok();
            waitpid(Some(pid), WaitOptions::NOHANG).ok();
        }
        sleep(Duration::from_millis(1));
    }
    fs::remove_file(path.join("supervisor")).ok();
    end(&path, &how);
    ExitCode::SUCCESS
}
