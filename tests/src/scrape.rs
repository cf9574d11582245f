//! `/metrics` as Prometheus reads it: values by name and labels, and which names are explained.

use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// One answer of `/metrics`.
#[derive(Debug, Default)]
pub struct Scrape {
    series: Vec<Series>,
    /// The kind of each metric, by its `TYPE` line.
    pub kinds: BTreeMap<String, String>,
    /// The explanation of each metric, by its `HELP` line.
    pub helps: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Scrape {
    /// Reads the text format; fails with the line it cannot read.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').with_context(|| line.to_owned())?;
                scrape.helps.insert(name.to_owned(), help.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                scrape.series.push(series(line).with_context(|| line.to_owned())?);
            }
        }
        ensure!(!scrape.series.is_empty(), "nothing is measured");
        Ok(scrape)
    }

    /// The sum of the series of this name that carry these labels, beside whatever others; `None` without any.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let carries = |series: &&Series| {
            series.name == name
                && labels.iter().all(|(name, value)| series.labels.get(*name).is_some_and(|v| v == value))
        };
        let found: Vec<f64> = self.series.iter().filter(carries).map(|series| series.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// Fails unless that sum is `expected`.
    pub fn is(&self, name: &str, labels: &[(&str, &str)], expected: f64) -> Result<()> {
        let value = self.value(name, labels);
        ensure!(
            value.is_some_and(|value| (value - expected).abs() < f64::EPSILON),
            "{name}{labels:?} is {value:?}, not {expected}"
        );
        Ok(())
    }

    /// Fails unless that sum is more than `bound`.
    pub fn is_above(&self, name: &str, labels: &[(&str, &str)], bound: f64) -> Result<()> {
        let value = self.value(name, labels);
        ensure!(value.is_some_and(|value| value > bound), "{name}{labels:?} is {value:?}, not above {bound}");
        Ok(())
    }

    /// Names of all metrics; a histogram counts once.
    pub fn metrics(&self) -> BTreeSet<&str> {
        self.series.iter().map(|series| self.metric(&series.name)).collect()
    }

    fn metric<'a>(&self, series: &'a str) -> &'a str {
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| series.strip_suffix(part));
        let histogram = |name: &&str| self.kinds.get(*name).is_some_and(|kind| kind == "histogram");
        whole.filter(histogram).unwrap_or(series)
    }
}

/// `name{label="value",…} 1`, or without labels.
fn series(line: &str) -> Result<Series> {
    let (head, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match head.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').context("labels without an end")?),
        None => (head, ""),
    };
    let pair = |pair: &str| -> Result<(String, String)> {
        let (name, value) = pair.split_once('=').context("a label without a value")?;
        Ok((name.to_owned(), value.trim_matches('"').to_owned()))
    };
    let labels = labels.split(',').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<_>>()?;
    Ok(Series { name: name.to_owned(), labels, value: value.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_over_the_labels_not_asked_for() -> Result<()> {
        let scrape = Scrape::parse(
            "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{a=\"x\",b=\"1\"} 2\n\
             calls_total{a=\"x\",b=\"2\"} 3\n\n# TYPE took_seconds histogram\ntook_seconds_bucket{le=\"+Inf\"} 1\n\
             took_seconds_sum 0.5\ntook_seconds_count 1\nup 1\n",
        )?;
        scrape.is("calls_total", &[("a", "x")], 5.0)?;
        scrape.is("calls_total", &[("b", "2")], 3.0)?;
        assert_eq!(scrape.value("calls_total", &[("a", "y")]), None);
        assert_eq!(scrape.metrics(), BTreeSet::from(["calls_total", "took_seconds", "up"]));
        assert_eq!(scrape.helps["calls_total"], "Calls.");
        Ok(())
    }
}
