//! Every interleaving within some faults: what is sound keeps its promises, what is not is found out.

use jobgate_model::{coverage::Seen, search};

#[test]
fn every_sound_manager_keeps_every_promise_and_every_step_is_taken() {
    let seen = Seen::default();
    for protocol in search::sound(false, &seen) {
        let what = protocol.to_string();
        let report = protocol.search(None);
        assert!(report.broken.is_empty(), "{what}: {:#?}", report.broken);
        // The job alone, accepted, created, recorded, started, ended.
        assert!(
            report.states > 10 && report.depth > 8,
            "{what}: {} states, {} deep",
            report.states,
            report.depth
        );
    }
    assert_eq!(seen.wrong(), [""; 0]);
}

#[test]
fn what_is_known_not_to_work_is_found_out() {
    for (protocol, known) in search::unsound() {
        let (what, promise) = (protocol.to_string(), known.name());
        let report = protocol.search(Some(known));
        assert!(report.found(known).is_some(), "{what}: nobody missed that {promise}: {:#?}", report.broken);
    }
}
