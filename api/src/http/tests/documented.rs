//! Every `curl` of `docs/http.md` is sent as it stands and must succeed.

use crate::testing::{Bench, small_job};

const DOCUMENT: &str = include_str!("../../../../docs/http.md");

/// The commands of the document: each with its continued lines joined, and what is piped into it.
fn commands() -> Vec<(String, Option<String>)> {
    let document = DOCUMENT.replace("\\\n", " ").replace("|\n", "| ");
    let lines = document.lines().filter_map(|line| line.strip_prefix("    "));
    lines
        .filter_map(|line| match line.split_once(" | ") {
            Some((printf, curl)) if printf.starts_with("printf") => {
                let piped = words(printf).split_off(2).into_iter().map(|word| word + "\n").collect();
                Some((curl.trim().to_owned(), Some(piped)))
            }
            Some(_) | None => line.starts_with("curl ").then(|| (line.to_owned(), None)),
        })
        .collect()
}

/// The words a shell would see; quotes of both kinds, a comment, nothing else.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (Some(_) | None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[tokio::test(start_paused = true)]
async fn every_documented_command_succeeds_as_it_stands() {
    let bench = Bench::new();
    let commands = commands();
    assert_eq!(commands.len(), DOCUMENT.matches("    curl ").count(), "every one is read");
    for (command, piped) in commands {
        let job = bench.posted(small_job()).await;
        let id = job["id"].as_str().unwrap();
        if command.contains("DELETE") {
            bench.call("POST", &format!("/v1/jobs/{id}/cancel")).send().await;
        }
        let (mut method, mut path, mut body, mut headers) =
            ("GET".to_owned(), String::new(), None, Vec::new());
        let mut words = words(&command).into_iter().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "-N" => {}
                "-X" => method = words.next().unwrap(),
                "-H" => headers.push(words.next().unwrap()),
                "-d" => body = words.next(),
                "--data-binary" => body = words.next().and(piped.clone()),
                url => path = url.replace("$URL", "").replace("$ID", id),
            }
        }
        if body.is_some() && method == "GET" {
            "POST".clone_into(&mut method);
        }
        let mut call = bench.call(&method, &path).without("authorization");
        for header in headers {
            let header = header.replace("$AUTH", &format!("Authorization: Bearer {}", bench.admin));
            let (name, value) = header.split_once(": ").unwrap();
            call = call.header(Box::leak(name.to_lowercase().into_boxed_str()), value);
        }
        if let Some(body) = body {
            call = call.content(body);
        }
        let status = call.open().await.status();
        assert!(status.is_success(), "{command} was answered {status}");
    }
}
