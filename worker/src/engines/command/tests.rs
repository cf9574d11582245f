//! Presets against what their schedulers print. Grid Engine's is recorded from 8.1.9; of the others, samples of their formats.

use super::{
    answer::{Row, new_id, rows},
    config::{
        Call, CommandConfig,
        State::{self, Canceled, Failed, Finished, Gone, Inert, Pending, Running, TimedOut},
    },
    template::Values,
};
use crate::{engine::SubmitMode, engines::EngineSettings as _};
use serde_json::json;
use std::collections::BTreeMap;

fn preset(name: &str) -> CommandConfig {
    let config = json!({"preset": name, "shared_dir": "/shared/jobs"});
    let config: CommandConfig = serde_json::from_value(config).unwrap();
    config.check().unwrap();
    config
}

fn states(call: &Call, output: &str) -> Vec<(String, Option<State>, Option<i32>)> {
    let told = rows(call, output).unwrap().into_iter();
    told.map(|Row { id, state, exit, .. }| (id, state, exit)).collect()
}

const NAME: &str = "jobgate-01890000-0000-7000-8000-000000000000-1.0123456789abcdef";

#[test]
fn every_preset_is_whole_and_creates_held() {
    for (name, held) in [("slurm", "--hold"), ("gridengine", "-h"), ("pbs", "-h")] {
        let config = preset(name);
        assert_eq!(config.mode(), SubmitMode::TwoPhase);
        let words = ["tag", "name", "project", "attempt_dir", "output", "error", "script"];
        let words: BTreeMap<_, _> = words.into_iter().map(|word| (word, "x".to_owned())).collect();
        let argv = config.settings.create.argv.render(&Values { words, ..Values::default() });
        assert!(argv.iter().any(|word| word == held), "{argv:?}");
        assert!(!argv.iter().any(|word| word.contains('{')), "{argv:?}");
    }
    let error =
        serde_json::from_value::<CommandConfig>(json!({"preset": "lsf", "shared_dir": "/x"})).unwrap_err();
    assert!(error.to_string().contains("lsf") && error.to_string().contains("slurm"), "{error}");
}

#[test]
fn single_keys_beat_a_preset_and_a_wrong_one_is_named() {
    let read = |over: serde_json::Value| -> Result<CommandConfig, String> {
        let mut config = json!({"preset": "slurm", "shared_dir": "/shared/jobs"});
        config.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        let config: CommandConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
        config.check().map_err(|error| format!("{error:#}"))?;
        Ok(config)
    };
    let config = read(json!({"find": {"states": {"PENDING Odd": "gone"}}})).unwrap();
    let find = config.settings.find.as_ref().unwrap();
    assert_eq!(find.states.of("PENDING Odd"), Some(Gone));
    assert_eq!(find.states.of("PENDING JobHeldUser"), Some(Inert));
    for (over, word) in [
        (json!({"fnd": {}}), "fnd"),
        (json!({"shared_dir": "/with space"}), "shared_dir"),
        (json!({"shared_dir": "relative"}), "shared_dir"),
        (json!({"start": {"argv": ["scontrol", "release"]}}), "start"),
        (json!({"find": {"row": "("}}), "regex"),
        (json!({"find": {"row": "(?P<id>.*)"}}), "name"),
        (json!({"submit_mode": "at_most_once"}), "at_most_once"),
        (json!({"job_env": {"UID": "0"}}), "UID"),
        (json!({"create": {"argv": ["sbatch"]}, "options": {"q": {"argv": ["{value}"]}}}), "{options}"),
    ] {
        let fault = read(over).unwrap_err();
        assert!(fault.contains(word), "{fault}");
    }
}

#[test]
fn grid_engines_answers_are_read() {
    let config = preset("gridengine");
    let settings = &config.settings;
    assert_eq!(new_id(&settings.create, "17\n").unwrap(), "17");
    let job = |id: u32, state: &str| {
        format!(
            "    <job_list state=\"pending\">\n      <JB_job_number>{id}</JB_job_number>\n      <JAT_prio>0.00000</JAT_prio>\n      \
             <JB_name>{NAME}</JB_name>\n      <JB_owner>cloud</JB_owner>\n      <state>{state}</state>\n      <slots>1</slots>\n    </job_list>\n"
        )
    };
    let words = ["hqw", "qw", "r", "t", "dr", "Eqw", "hr", "Rr", "Rq", "S", "dt"];
    let jobs: String = (1..).zip(words).map(|(id, word)| job(id, word)).collect();
    let output =
        format!("<?xml version='1.0'?>\n<job_info>\n  <job_info>\n{jobs}  </job_info>\n</job_info>\n\n");
    let find = settings.find.as_ref().unwrap();
    let seen: Vec<_> = states(find, &output).into_iter().map(|(_, state, _)| state.unwrap()).collect();
    let expected =
        [Inert, Pending, Running, Running, Running, Failed, Running, Running, Pending, Running, Running];
    assert_eq!(seen, expected);
    assert_eq!(rows(find, &output).unwrap()[0].name, NAME);
    rows(find, &output[..output.len() - 20]).unwrap_err();
    let account = settings.account.as_ref().unwrap();
    for (failed, exit, state) in [
        ("0   ", 7, Failed),
        ("0   ", 0, Finished),
        ("100 : assumedly after job", 137, Failed),
        ("37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", 137, Failed),
    ] {
        let output = format!(
            "====\nqname        all.q               \njobname      {NAME}\njobnumber    1                   \ntaskid       undefined\n\
             failed       {failed} \nexit_status  {exit}                   \nru_wallclock 0s\n"
        );
        assert_eq!(states(account, &output), [("1".to_owned(), Some(state), Some(exit))], "{failed}");
    }
    let unknown = settings.start.as_ref().unwrap().unknown.as_ref().unwrap();
    assert!(unknown.regex.is_match("denied: job \"1\" does not exist"));
    assert!(account.unknown.as_ref().unwrap().regex.is_match("error: job id 999 not found"));
}

#[test]
fn slurms_answers_are_read() {
    let config = preset("slurm");
    let settings = &config.settings;
    assert_eq!(new_id(&settings.create, "1234\n").unwrap(), "1234");
    assert_eq!(new_id(&settings.create, "1234;campus\n").unwrap(), "1234");
    new_id(&settings.create, "sbatch: queued\n1234\n").unwrap_err();
    let find = settings.find.as_ref().unwrap();
    let output = format!(
        "5|{NAME}|PENDING JobHeldUser\n6|{NAME}|PENDING Resources\n7|{NAME}|RUNNING None\n8|{NAME}|COMPLETING None\n\
         9|{NAME}|TIMEOUT TimeLimit\n10|other|job|CANCELLED None\n11_[1-4]|x|NODE_FAIL None\n"
    );
    let seen: Vec<_> = states(find, &output).into_iter().map(|(_, state, _)| state).collect();
    assert_eq!(seen, [Inert, Pending, Running, Running, TimedOut, Canceled, Gone].map(Some));
    let told = rows(find, &output).unwrap();
    assert_eq!((told[1].reason.as_deref(), told[2].reason.as_deref()), (Some("Resources"), None));
    rows(find, "slurm_load_jobs error: Unable to contact slurm controller\n").unwrap_err();
    let account = settings.account.as_ref().unwrap();
    let output = format!("5|{NAME}|FAILED|7:0\n6|{NAME}|CANCELLED by 1000|0:15\n7|{NAME}|COMPLETED|0:0\n");
    let expected = [("5", Failed, 7), ("6", Canceled, 0), ("7", Finished, 0)];
    assert_eq!(
        states(account, &output),
        expected.map(|(id, state, exit)| (id.to_owned(), Some(state), Some(exit)))
    );
    let create = &settings.create;
    let refused = |said: &str| create.refused.as_ref().unwrap().regex.is_match(said);
    assert!(refused("sbatch: error: Batch job submission failed: Invalid partition name specified"));
    assert!(refused(
        "sbatch: error: Batch job submission failed: Requested node configuration is not available"
    ));
    let limit = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates \
                 accounting/QOS policy (job submit limit, user's size and/or time limits)";
    assert!(!refused(limit) && create.not_now.as_ref().unwrap().regex.is_match(limit), "it waits");
    for away in
        ["Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)"]
    {
        assert!(!refused(&format!("sbatch: error: Batch job submission failed: {away}")), "{away}");
    }
}

#[test]
fn pbss_answers_are_read() {
    let config = preset("pbs");
    let settings = &config.settings;
    assert_eq!(new_id(&settings.create, "42.pbs.example.org\n").unwrap(), "42.pbs.example.org");
    let find = settings.find.as_ref().unwrap();
    let output = json!({"timestamp": 1, "Jobs": {
        "1.pbs": {"Job_Name": NAME, "job_state": "H"},
        "2.pbs": {"Job_Name": NAME, "job_state": "R", "comment": "Job run at Mon"},
        "3.pbs": {"Job_Name": NAME, "job_state": "F", "Exit_status": 7},
        "4.pbs": {"Job_Name": NAME, "job_state": "F", "Exit_status": 0},
    }});
    let seen: Vec<_> =
        states(find, &output.to_string()).into_iter().map(|(_, state, _)| state.unwrap()).collect();
    assert_eq!(seen, [Inert, Running, Failed, Finished]);
    assert_eq!(rows(find, r#"{"timestamp": 1}"#).unwrap(), []);
    rows(find, "pbs_connect: cannot reach the server").unwrap_err();
}
