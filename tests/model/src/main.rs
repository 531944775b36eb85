//! The command line of the model.
//!
//! `run --seeds N [--from N] [--hole ID]` searches, `replay SEED [--hole ID]` tells the story of one,
//! `explore [--two] [--hole ID]` takes every way through a planned move.

use std::io::Write;
use std::process::ExitCode;

use model::explore::{self, Bound};
use model::hole::Planted;
use model::schedule::Bench;
use model::trace::Trace;

const USAGE: &str = "usage: model run [--seeds N] [--from N] [--hole ID]
       model replay SEED [--hole ID]
       model explore [--two] [--hole ID]";

#[derive(Debug, Default)]
struct Options {
    words: Vec<String>,
    seeds: u64,
    from: u64,
    hole: Option<Planted>,
}

fn options() -> Result<Options, String> {
    let mut found = Options { seeds: 1000, ..Options::default() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seeds" => found.seeds = number(&value()?)?,
            "--from" => found.from = number(&value()?)?,
            "--hole" => found.hole = Some(value()?.parse()?),
            _ => found.words.push(arg),
        }
    }
    Ok(found)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => return fail(&error),
    };
    let words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    match words[..] {
        ["run"] => search(&options),
        ["replay", seed] => match number(seed) {
            Ok(seed) => replay(seed, options.hole),
            Err(error) => fail(&error),
        },
        ["explore"] => explore_move(&Bound::one(), options.hole),
        ["explore", "--two"] => explore_move(&Bound::two(), options.hole),
        _ => fail("what shall be done?"),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("{error}\n{USAGE}");
    ExitCode::from(2)
}

fn search(options: &Options) -> ExitCode {
    let bench = Bench::new(options.hole);
    let mut broken = 0u32;
    let (mut steps, mut worst) = (0, (0, 0));
    for seed in options.from..options.from + options.seeds {
        let report = bench.run(seed, Trace::default());
        steps += report.steps;
        worst = worst.max((report.settled_after, seed));
        if let Some(violation) = report.violation {
            broken += 1;
            println!("seed {seed}: {}: {}", violation.property, violation.text);
        }
    }
    let (after, seed) = worst;
    println!(
        "{} seeds, {steps} happenings, {broken} broken; longest way back {} ms (seed {seed})",
        options.seeds,
        after / 1000
    );
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64, hole: Option<Planted>) -> ExitCode {
    let report = Bench::new(hole).run(seed, Trace::kept());
    // A reader that has seen enough (`| head`) is no failure.
    let _ = write!(std::io::stdout(), "{}", report.trace);
    match report.violation {
        Some(violation) => {
            eprintln!("{}: {}", violation.property, violation.text);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn explore_move(bound: &Bound, hole: Option<Planted>) -> ExitCode {
    let bench = Bench::new(hole);
    let steady = bench.steady();
    let found = explore::planned_move(steady, bound);
    println!(
        "{} schedules, {} states branched, {} met again",
        found.schedules, found.states, found.known
    );
    let Some((violation, way)) = found.violation else { return ExitCode::SUCCESS };
    print!("{}", explore::story(steady, bound, &way));
    println!("{}: {}\n{way:?}", violation.property, violation.text);
    ExitCode::FAILURE
}
