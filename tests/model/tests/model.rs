//! The searches.
use jobgate_model::{Faults, Protocol, manager::Kind};
use stateright::{Checker as _, Model as _, report::WriteReporter};

const FAULTS: Faults =
    Faults { crashes: 1, expiries: 1, losses: 1, ticks: 2, cancels: 1, retries: 0, drains: 0 };

fn search(kind: Kind, faults: Faults) {
    let v: Vec<u8> =
        std::env::var("F").unwrap_or_default().split(',').filter_map(|x| x.parse().ok()).collect();
    let faults = if v.len() == 7 {
        Faults {
            crashes: v[0],
            expiries: v[1],
            losses: v[2],
            ticks: v[3],
            cancels: v[4],
            retries: v[5],
            drains: v[6],
        }
    } else {
        faults
    };
    let protocol = Protocol::new(kind, faults);
    let began = std::time::Instant::now();
    let checker =
        protocol.checker().threads(2).timeout(std::time::Duration::from_secs(60)).spawn_bfs().join();
    let _ = WriteReporter::new(&mut std::io::stdout());
    eprintln!(
        "{kind:?}: {} unique, {} in all, depth {}, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    for (name, path) in checker.discoveries() {
        eprintln!("{kind:?} BROKEN: {name}");
        let last = path.last_state().clone();
        for action in path.into_actions() {
            eprintln!("   {action:?}");
        }
        eprintln!("   row {:?}\n   broken {:?} settle {:?}", last.row, last.broken, last);
    }
    eprintln!("missing: {:?}", checker.model().coverage.missing());
}

#[test]
fn two_phase() {
    search(Kind::TwoPhase, FAULTS);
}
#[test]
fn by_name() {
    search(Kind::TwoPhaseByName, FAULTS);
}
#[test]
fn unique() {
    search(Kind::UniqueName, FAULTS);
}
#[test]
fn fenced() {
    search(Kind::Fenced, FAULTS);
}
#[test]
fn at_most_once() {
    search(Kind::AtMostOnce, FAULTS);
}
#[test]
fn lease_only() {
    search(Kind::LeaseOnly, FAULTS);
}
#[test]
fn lookup() {
    search(Kind::LookupFirst, FAULTS);
}
#[test]
fn first() {
    search(Kind::FenceForTheFirst, FAULTS);
}
