//! Which jobs a listing or a bulk command means, and the cursor that leads to its next page.
//!
//! A cursor is opaque to clients and bound to the filter and the project it was made for: given to another listing it is
//! refused instead of skipping jobs in silence. It grants nothing: every page is read within the caller's own scope.

use super::{
    extract::Params,
    problem::{Answer, Kind, Problem},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobgate_shared::{
    domain::{JobId, JobState},
    store::{Filter, Scope},
};
use sha2::{Digest as _, Sha256};
use std::str::FromStr;
use uuid::Uuid;

/// Bytes of a cursor's binding.
const BINDING: usize = 12;

/// Takes the filter's parameters.
pub(super) fn take_filter(params: &mut Params) -> Answer<Filter> {
    let mut states = Vec::new();
    for state in params.all("state").iter().flat_map(|all| all.split(',')) {
        states.push(JobState::from_str(state).map_err(|()| {
            let names = JobState::ALL.map(JobState::as_str).join(", ");
            Problem::invalid("state", format!("must be one of: {names}"))
        })?);
    }
    Ok(Filter {
        states,
        labels: params.all("label"),
        cluster: params.parse("cluster", "the name of a cluster")?,
        name: params.one("name")?,
        created_after: params.parse("created_after", "a time such as 2026-01-31T12:00:00Z")?,
        created_before: params.parse("created_before", "a time such as 2026-01-31T12:00:00Z")?,
    })
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
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn no_text_makes_a_cursor_panic(text in "[A-Za-z0-9_=+/-]{0,60}") {
            let taken = take_cursor(&mut params(&text), &Scope::All, &Filter::default());
            prop_assert!(taken.is_err());
        }
    }
}
