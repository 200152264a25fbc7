//! Hardens three prompts and prints them next to what the base writes alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::{Term, measure_text_width, style};
use serde::Deserialize;
use serde_json::{Value, json};

struct ShowcasePrompt {
    title: &'static str,
    prompt: &'static str,
}

const PROMPTS: [ShowcasePrompt; 3] = [
    ShowcasePrompt {
        title: "a query with a caller's value in it (CWE-089)",
        prompt: "def find_user(db, name):\n    cursor = db.cursor()\n    cursor.execute(",
    },
    ShowcasePrompt {
        title: "a row to delete (CWE-089)",
        prompt: "def delete_message(conn, message_id):\n    cur = conn.cursor()\n    cur.execute(\"DELETE FROM messages WHERE id",
    },
    ShowcasePrompt {
        title: "a shell command with a caller's value in it (CWE-078)",
        prompt: "import subprocess\n\ndef ping(host):\n    return subprocess.",
    },
];

const SEED: u64 = 3407;
const MAX_TOKENS: u32 = 64;

/// Characters of a line where there is no terminal to ask.
const WIDTH_ELSEWHERE: u16 = 120;

/// Prints every example; both completions of one come from the same seed.
pub(crate) async fn run(http: &str, model: &str) -> Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
    for example in &PROMPTS {
        let base = complete(&client, http, model, example.prompt, "base_only").await?;
        let hardened = complete(&client, http, model, example.prompt, "cosec").await?;
        println!("\n{}", style(example.title).bold());
        println!("{}\n", style(example.prompt).dim());
        let width = Term::stdout().size_checked().map_or(WIDTH_ELSEWHERE, |(_, columns)| columns);
        let column = (usize::from(width).clamp(80, 160) - 3) / 2;
        let left = lines(&base.pieces, column);
        let right = lines(&hardened.pieces, column);
        print_row(&style("base alone").yellow().to_string(), &style("hardened").green().to_string(), column);
        for row in 0..left.len().max(right.len()) {
            let cell = |lines: &[Vec<MarkedCharacter>]| lines.get(row).map(|line| render(line)).unwrap_or_default();
            print_row(&cell(&left), &cell(&right), column);
        }
        print_row(&base.summary(), &hardened.summary(), column);
    }
    println!("\n{} another token than the base's own draw, because of the expert", render(&marked("marked:")));
    Ok(())
}

fn print_row(left: &str, right: &str, column: usize) {
    let padding = " ".repeat(column.saturating_sub(measure_text_width(left)));
    println!("{left}{padding} │ {right}");
}

/// A part of a completion and whether the expert changed it.
struct TextPiece {
    text: String,
    by_expert: bool,
}

struct ShownCompletion {
    pieces: Vec<TextPiece>,
    tokens: usize,
    elapsed: Duration,
}

impl ShownCompletion {
    fn summary(&self) -> String {
        let expert = self.pieces.iter().filter(|piece| piece.by_expert).count();
        let seconds = self.elapsed.as_secs_f64();
        let line = format!("{} tokens, {expert} marked, {:.0}/s", self.tokens, self.tokens as f64 / seconds);
        style(line).dim().to_string()
    }
}

#[derive(Deserialize)]
struct ReportedToken {
    token: String,
    hardening: String,
}

async fn complete(
    client: &reqwest::Client,
    http: &str,
    model: &str,
    prompt: &str,
    rule: &str,
) -> Result<ShownCompletion> {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0.4, "top_p": 0.95, "seed": SEED,
        "stop": ["\ndef ", "\nclass ", "\n@", "\n\n\n"], "cosec": { "rule": rule, "report": true },
    });
    let start = Instant::now();
    let answer = client.post(format!("{http}/v1/completions")).json(&body).send().await?;
    let status = answer.status();
    let answer: Value = answer.json().await.context("the coordinator did not answer in JSON")?;
    ensure!(status.is_success(), "the coordinator answered {status}: {answer}");
    let elapsed = start.elapsed();
    let choice = answer.pointer("/choices/0").context("the answer has no choice")?;
    let text = choice["text"].as_str().context("the choice has no text")?;
    let report: Vec<ReportedToken> =
        serde_json::from_value(choice["cosec"]["report"].clone()).context("no report")?;
    Ok(ShownCompletion { tokens: report.len(), pieces: pieces(text, report), elapsed })
}

/// Splits `text` along the reported tokens, which may run past it into a stop string.
fn pieces(text: &str, report: Vec<ReportedToken>) -> Vec<TextPiece> {
    let mut rest = text;
    let mut pieces = Vec::new();
    for ReportedToken { token, hardening } in report {
        let shared =
            token.char_indices().map(|(at, c)| at + c.len_utf8()).rfind(|&end| rest.starts_with(&token[..end]));
        let (head, tail) = rest.split_at(shared.unwrap_or(0));
        pieces.push(TextPiece { text: head.to_owned(), by_expert: hardening == "expert" });
        rest = tail;
    }
    pieces.push(TextPiece { text: rest.to_owned(), by_expert: false });
    pieces
}

#[derive(Clone, Copy, PartialEq)]
struct MarkedCharacter {
    character: char,
    by_expert: bool,
}

fn marked(text: &str) -> Vec<MarkedCharacter> {
    text.chars().map(|character| MarkedCharacter { character, by_expert: true }).collect()
}

/// Breaks the text into lines of at most `width` characters, marks included.
fn lines(pieces: &[TextPiece], width: usize) -> Vec<Vec<MarkedCharacter>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let glyphs = pieces.iter().flat_map(|piece| piece.text.chars().map(|character| (character, piece.by_expert)));
    for (character, by_expert) in glyphs {
        if character == '\n' {
            lines.push(std::mem::take(&mut line));
            continue;
        }
        line.push(MarkedCharacter { character, by_expert });
        if measure_text_width(&render(&line)) > width {
            let overflow = line.split_off(line.len() - 1);
            lines.push(std::mem::replace(&mut line, overflow));
        }
    }
    lines.push(line);
    lines
}

/// Colours the expert's text on a terminal; sets it in ‹ › elsewhere.
fn render(line: &[MarkedCharacter]) -> String {
    line.chunk_by(|a, b| a.by_expert == b.by_expert)
        .map(|run| {
            let text: String = run.iter().map(|glyph| glyph.character).collect();
            match (run[0].by_expert, console::colors_enabled()) {
                (false, _) => text,
                (true, true) => style(text).green().underlined().to_string(),
                (true, false) => format!("‹{text}›"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(token: &str, hardening: &str) -> ReportedToken {
        ReportedToken { token: token.to_owned(), hardening: hardening.to_owned() }
    }

    #[test]
    fn pieces_follow_the_tokens_and_end_with_the_text() {
        let found =
            pieces("ab\"c", vec![reported("ab", "expert"), reported("\"c", "base"), reported("\ndef ", "expert")]);
        let parts: Vec<(&str, bool)> = found.iter().map(|piece| (piece.text.as_str(), piece.by_expert)).collect();
        assert_eq!(parts, [("ab", true), ("\"c", false), ("", true), ("", false)]);
    }

    #[test]
    fn lines_break_at_newlines_and_at_the_width() {
        let text = [TextPiece { text: "abcdef\ng".to_owned(), by_expert: false }];
        let shown: Vec<String> = lines(&text, 4).iter().map(|line| render(line)).collect();
        assert_eq!(shown, ["abcd", "ef", "g"]);
    }
}
