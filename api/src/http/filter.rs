//! Which jobs a listing or a bulk command means, and the cursor that leads to its next page.
//!
//! A cursor is opaque to clients and bound to the filter and the project it was made for: given to another listing it is
//! refused instead of skipping jobs in silence. It grants nothing: every page is read within the caller's own scope.

use super::{
    extract::Params,
    problem::{Answer, Kind, Problem},
    request::{Label, MAX_NAME, check_label, check_text},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{ClusterName, JobId, JobState},
    store::{Filter, Scope},
};
use sha2::{Digest as _, Sha256};
use std::str::FromStr;
use uuid::Uuid;

/// Bytes of a cursor's binding.
const BINDING: usize = 12;

/// Which jobs are meant: those all of this holds for.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "what the document says of parameters; they are taken one by one")]
pub(super) struct FilterParams {
    /// In one of these states; repeated, or with commas between.
    state: Option<Vec<JobState>>,
    /// With every one of these labels; repeated.
    label: Option<Vec<Label>>,
    /// Of this cluster.
    cluster: Option<ClusterName>,
    /// Of exactly this name.
    #[param(max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: Option<String>,
    /// Accepted at or after this time.
    created_after: Option<DateTime<Utc>>,
    /// Accepted before this time.
    created_before: Option<DateTime<Utc>>,
}

/// Takes the filter's parameters. What no job can have is refused, as a slip of whoever asks for it.
pub(super) fn take_filter(params: &mut Params) -> Answer<Filter> {
    let mut states = Vec::new();
    for state in params.all("state").iter().flat_map(|all| all.split(',')) {
        states.push(JobState::from_str(state).map_err(|()| {
            let names = JobState::ALL.map(JobState::as_str).join(", ");
            Problem::invalid("state", format!("must be one of: {names}"))
        })?);
    }
    let labels = params.all("label");
    labels.iter().try_for_each(|label| check_label("label", label))?;
    let name = params.one("name")?;
    name.iter().try_for_each(|name| check_text("name", name, MAX_NAME))?;
    Ok(Filter {
        states,
        labels,
        cluster: params.parse("cluster", "the name of a cluster")?,
        name,
        created_after: take_time(params, "created_after")?,
        created_before: take_time(params, "created_before")?,
    })
}

/// A time no job was accepted after, which every store can hold.
const YEAR_9999: DateTime<Utc> = match DateTime::from_timestamp_secs(253_370_764_800) {
    Some(time) => time,
    None => DateTime::UNIX_EPOCH,
};

/// Takes a time. Those no store could hold mean the same as the first or the last that every store can.
fn take_time(params: &mut Params, name: &str) -> Answer<Option<DateTime<Utc>>> {
    let time: Option<DateTime<Utc>> = params.parse(name, "a time such as 2026-01-31T12:00:00Z")?;
    Ok(time.map(|time| time.clamp(DateTime::UNIX_EPOCH, YEAR_9999)))
}

/// Takes the parameter `cursor`: the job the page before ended with.
pub(super) fn take_cursor(params: &mut Params, scope: &Scope, filter: &Filter) -> Answer<Option<JobId>> {
    let Some(text) = params.one("cursor")? else { return Ok(None) };
    let foreign = || {
        Problem::new(Kind::InvalidCursor, "use the `next_cursor` of the same listing, with the same filter")
            .at("cursor")
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| foreign())?;
    let (id, binding) = bytes.split_at_checked(16).ok_or_else(foreign)?;
    let id = JobId(Uuid::from_slice(id).map_err(|_| foreign())?);
    if binding == bind(id, scope, filter) { Ok(Some(id)) } else { Err(foreign()) }
}

/// The cursor behind `last` in this listing.
pub(super) fn cursor(last: JobId, scope: &Scope, filter: &Filter) -> String {
    let mut bytes = last.0.as_bytes().to_vec();
    bytes.extend(bind(last, scope, filter));
    URL_SAFE_NO_PAD.encode(bytes)
}

fn bind(id: JobId, scope: &Scope, filter: &Filter) -> [u8; BINDING] {
    let mut hash = Sha256::new();
    hash.update(b"jobgate cursor 1\0");
    hash.update(id.0.as_bytes());
    match scope {
        Scope::Project(project) => hash.update(project.as_str()),
        // No project is called so.
        Scope::All => hash.update(b"*"),
    }
    hash.update(b"\0");
    // Lists, names and times: nothing to fail on.
    hash.update(serde_json::to_vec(filter).unwrap_or_default());
    let digest: [u8; 32] = hash.finalize().into();
    let mut binding = [0; BINDING];
    binding.copy_from_slice(&digest[..BINDING]);
    binding
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, option::of, prelude::*, sample::Index, sample::subsequence};

    fn params(cursor: &str) -> Params {
        Params::of(&[("cursor", cursor)])
    }

    #[test]
    fn a_cursor_leads_on_in_its_own_listing_only() {
        let (id, filter) = (JobId::generate(), Filter::default());
        let own = Scope::Project("a".parse().unwrap());
        let text = cursor(id, &own, &filter);
        assert_eq!(take_cursor(&mut params(&text), &own, &filter), Ok(Some(id)));
        let other = Filter { labels: vec!["x".to_owned()], ..Filter::default() };
        let elsewhere =
            [(Scope::Project("b".parse().unwrap()), filter.clone()), (Scope::All, filter), (own, other)];
        for (scope, filter) in elsewhere {
            let refused = take_cursor(&mut params(&text), &scope, &filter).unwrap_err();
            assert_eq!(refused.kind(), Kind::InvalidCursor);
        }
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let states = subsequence(JobState::ALL.to_vec(), 0..4);
        let words = (vec("[a-c]{1,3}", 0..3), of("[a-c]{1,3}"), of("[a-c]{1,3}"));
        let time =
            || of((0..4_000_000_000_i64).prop_filter_map("a time", |s| DateTime::from_timestamp(s, 0)));
        (states, words, time(), time()).prop_map(
            |(states, (labels, cluster, name), created_after, created_before)| {
                let cluster = cluster.map(|name| name.parse().unwrap());
                Filter { states, labels, cluster, name, created_after, created_before }
            },
        )
    }

    #[test]
    fn what_no_job_can_have_is_refused_and_what_no_store_can_hold_means_the_nearest() {
        for (name, value) in [("label", ""), ("label", "nul\0"), ("name", "two\nlines"), ("cluster", "A")] {
            let refused = take_filter(&mut Params::of(&[(name, value)])).unwrap_err();
            assert_eq!(serde_json::to_value(refused).unwrap()["field"], name);
        }
        let mut ages = Params::of(&[
            ("created_after", "-200000-01-01T00:00:00Z"),
            ("created_before", "+200000-01-01T00:00:00Z"),
        ]);
        let filter = take_filter(&mut ages).unwrap();
        assert_eq!(filter.created_after, Some(DateTime::UNIX_EPOCH));
        assert_eq!(filter.created_before.unwrap().to_rfc3339(), "9999-01-01T00:00:00+00:00");
    }

    proptest! {
        #[test]
        fn a_cursor_leads_on_in_any_listing_and_in_no_other(
            id: u128, own in filter(), other in filter(), hurt: Index, byte in "[A-Za-z0-9_-]",
        ) {
            let (id, scope) = (JobId(Uuid::from_u128(id)), Scope::Project("a".parse().unwrap()));
            let mut text = cursor(id, &scope, &own);
            prop_assert_eq!(take_cursor(&mut params(&text), &scope, &own), Ok(Some(id)));
            let elsewhere = take_cursor(&mut params(&text), &scope, &other);
            prop_assert!(elsewhere.is_ok() == (own == other));
            let at = hurt.index(text.len());
            let before = text.clone();
            text.replace_range(at..=at, &byte);
            prop_assert!(take_cursor(&mut params(&text), &scope, &own).is_ok() == (text == before));
        }

        #[test]
        fn no_text_makes_a_cursor_panic(text in "[A-Za-z0-9_=+/-]{0,60}") {
            let taken = take_cursor(&mut params(&text), &Scope::All, &Filter::default());
            prop_assert!(taken.is_err());
        }
    }
}
