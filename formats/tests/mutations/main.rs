//! Every format against images whose metadata is changed, by accident and by malice: nothing panics, hangs or eats
//! memory, no layer breaks a law, all threads get the same answers, and what a format can reveal is never wrong and
//! sound at once.
//!
//! `VDRECOVER_MUTATIONS=N` asks for N mutations of each fixture, `VDRECOVER_SEED=fixture:number` for one of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod fixtures;
mod forge;
mod guard;
mod image;
mod judge;
mod mutate;

use fixtures::{Expect, Fixture, Part};
use guard::{Counting, Meter, Watchdog};
use image::Image;
use judge::{Outcome, judge};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Bytes, Content, FORMATS, Pool, Trust};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, so that memory is counted for one.
static ALONE: Mutex<()> = Mutex::new(());

/// Mutations of each fixture, if nobody asks for more.
const MUTATIONS: u64 = 40;
/// Beyond what was in use before.
const MEMORY: usize = 256 << 20;
const TIME: Duration = Duration::from_secs(30);

fn all() -> &'static [Fixture] {
    static ALL: OnceLock<Vec<Fixture>> = OnceLock::new();
    ALL.get_or_init(fixtures::all)
}

#[test]
fn every_format_has_a_fixture() {
    let have: BTreeSet<&str> = all().iter().map(|fixture| fixture.format).collect();
    let rows: BTreeSet<&str> = FORMATS.iter().map(|format| format.name).collect();
    assert_eq!(have, rows);
    for fixture in all() {
        assert!(fixture.parts.iter().any(|part| !part.areas.is_empty()), "{}: nothing to mutate", fixture.name);
        for Part { device, areas, .. } in &fixture.parts {
            assert!(areas.iter().all(|area| area.range.end <= device.len()), "{}: {areas:?}", fixture.name);
        }
    }
}

#[test]
fn fixtures_are_sound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for fixture in all() {
        let images: Vec<Bytes> =
            fixture.images().into_iter().map(|image| -> Bytes { std::sync::Arc::new(image) }).collect();
        let scores: Vec<u8> = FORMATS.iter().map(|format| (format.probe)(&*images[0])).collect();
        let row = judge::row(fixture);
        assert_eq!(scores.iter().max(), Some(&(row.probe)(&*images[0])), "{}", fixture.name);
        let opened = (row.open)(&images[0], &Pool::new(8 << 20).share()).unwrap();
        let content = judge::join(fixture, &opened, &images).unwrap();
        let layers: Vec<Bytes> = match (&content, &fixture.expect) {
            (Content::Disks(disks), _) => disks.iter().map(|disk| disk.bytes.clone()).collect(),
            (Content::Volumes(volumes), _) => volumes.iter().map(|volume| volume.bytes.clone()).collect(),
            (Content::Tree(tree), Expect::Tree(files)) => files
                .iter()
                .filter_map(|file| {
                    let path = file.path.split('/');
                    let id = path.fold(tree.root(), |dir, name| tree.lookup(dir, name.as_bytes()).unwrap().unwrap().id);
                    file.content.as_ref().map(|_| tree.open(id).unwrap())
                })
                .collect(),
            (content, _) => panic!("{content:?}"),
        };
        for layer in layers {
            check_laws(&*layer, Effort { runs: 500, bytes: 1 << 20 }).unwrap();
            let mut byte = [0];
            // What shows beside zero grains of SESparse could have been such grains.
            let want = if fixture.name == "sesparse" { Trust::Inferred } else { Trust::Sound };
            assert_eq!(vdrecover_formats::read(&*layer, 0, &mut byte).trust, want, "{}", fixture.name);
        }
        let mut outcome = judge(fixture, &fixture.images(), true);
        // A log that has to be replayed is told of, and no damage; nor are zero grains.
        outcome.findings.retain(|code| !["VHDX-LOG-REPLAYED", "SESPARSE-UNNAMED"].contains(code));
        let Outcome { digest, lost, .. } = outcome;
        // A mapping's bytes are on another device.
        let right = Outcome { opened: true, digest, lost, ..Outcome::default() };
        assert_eq!((outcome, lost), (right, 0), "{}", fixture.name);
    }
}

/// What became of the mutations of one structure.
#[derive(Default)]
struct Tally {
    all: u64,
    refused: u64,
    whole: u64,
    lost: u64,
    doubtful: u64,
    wrong_found: u64,
    wrong_silent: u64,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.all += 1;
        let class = match outcome {
            Outcome { wrong: 1.., findings, .. } if findings.is_empty() => &mut self.wrong_silent,
            Outcome { wrong: 1.., .. } => &mut self.wrong_found,
            Outcome { opened: false, .. } => &mut self.refused,
            Outcome { doubtful: 1.., .. } => &mut self.doubtful,
            Outcome { lost, missing, .. } if lost + missing > 0 => &mut self.lost,
            _ => &mut self.whole,
        };
        *class += 1;
    }
}

/// Runs one case under guard; the text of what is wrong, if anything is.
fn guarded(
    watchdog: &Watchdog,
    fixture: &Fixture,
    about: &str,
    images: &[Image],
    threads: bool,
) -> (Result<Outcome, String>, usize) {
    watchdog.watch(Some(about.to_owned()));
    let meter = Meter::start();
    let outcome = catch_unwind(AssertUnwindSafe(|| judge(fixture, images, threads)));
    let peak = meter.peak();
    watchdog.watch(None);
    let outcome = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let outcome = match outcome {
        Ok(_) if peak > MEMORY => Err(format!("{peak} bytes of memory")),
        outcome => outcome,
    };
    (outcome, peak)
}

#[test]
fn mutated_images_are_lawful() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = env::var("VDRECOVER_MUTATIONS").ok().and_then(|count| count.parse().ok());
    let seed = env::var("VDRECOVER_SEED").ok();
    let seed = seed.as_deref().and_then(|seed| seed.split_once(':')).map(|(name, n)| (name, n.parse::<u64>().unwrap()));
    let watchdog = Watchdog::new(TIME);
    let mut tallies: BTreeMap<(&str, &str), Tally> = BTreeMap::new();
    let mut wrong = Vec::new();
    let (mut peak, mut slowest) = ((0, String::new()), (Duration::ZERO, String::new()));
    let start = Instant::now();
    for fixture in all().iter().filter(|fixture| seed.is_none_or(|(name, _)| name == fixture.name)) {
        let numbers = seed.map_or(0..asked.unwrap_or(MUTATIONS), |(_, number)| number..number + 1);
        for number in numbers {
            let mutation = mutate::mutate(fixture, number);
            let about = format!("VDRECOVER_SEED={}:{number} {:?}", fixture.name, mutation.steps);
            let started = Instant::now();
            let (outcome, used) = guarded(&watchdog, fixture, &about, &mutation.images, number % 4 == 0);
            peak = peak.max((used, about.clone()));
            slowest = slowest.max((started.elapsed(), about.clone()));
            if seed.is_some() {
                println!("{about}: {outcome:?}");
            }
            match outcome {
                Err(text) => wrong.push(format!("{about}: {text}")),
                Ok(outcome) => {
                    if outcome.wrong > 0 && mutation.revealed {
                        wrong.push(format!("{about}: {} bytes wrong and sound: {:?}", outcome.wrong, outcome.first));
                    } else if outcome.wrong > 0
                        && outcome.findings.is_empty()
                        && env::var_os("VDRECOVER_SHOW").is_some()
                    {
                        println!("{about}: {} bytes wrong, sound and silent: {:?}", outcome.wrong, outcome.first);
                    }
                    tallies.entry((fixture.name, mutation.what)).or_default().add(&outcome);
                }
            }
        }
    }
    print_tallies(&tallies);
    println!("{:?}; peak memory {} bytes: {}; slowest {:?}: {}", start.elapsed(), peak.0, peak.1, slowest.0, slowest.1);
    assert!(wrong.is_empty(), "{} mutations:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

fn print_tallies(tallies: &BTreeMap<(&str, &str), Tally>) {
    println!("wrong and sound: the last two columns, with a finding and without any");
    println!("{:14} {:20}   all  refused  whole  lost  doubtful  found  silent", "fixture", "structure");
    let mut sum = Tally::default();
    for ((fixture, what), tally) in tallies {
        let Tally { all, refused, whole, lost, doubtful, wrong_found, wrong_silent } = tally;
        println!(
            "{fixture:14} {what:20} {all:5} {refused:8} {whole:6} {lost:5} {doubtful:9} {wrong_found:6} {wrong_silent:7}"
        );
        sum.all += all;
        sum.wrong_found += wrong_found;
        sum.wrong_silent += wrong_silent;
    }
    println!("{} mutations, {} wrong and sound with a finding, {} silent", sum.all, sum.wrong_found, sum.wrong_silent);
}

/// Entries that no writer makes: out of range, unaligned, of no known type, without their magic.
#[test]
fn what_a_format_can_reveal_is_never_wrong_and_sound() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let watchdog = Watchdog::new(TIME);
    let mut wrong = Vec::new();
    let mut count = 0;
    for fixture in all() {
        for forged in forge::all(fixture) {
            count += 1;
            let about = format!("{}: {} at {:#x}", fixture.name, forged.what, forged.at);
            match guarded(&watchdog, fixture, &about, &forged.images, false).0 {
                Err(text) => wrong.push(format!("{about}: {text}")),
                Ok(outcome) if outcome.wrong > 0 => {
                    wrong.push(format!("{about}: {} bytes wrong and sound: {:?}", outcome.wrong, outcome.first));
                }
                Ok(outcome) => {
                    let seen = !outcome.opened || outcome.lost + outcome.doubtful + outcome.missing > 0;
                    if !seen && outcome.findings.is_empty() {
                        wrong.push(format!("{about}: nobody says anything"));
                    }
                }
            }
        }
    }
    println!("{count} forged entries");
    assert!(count > 60, "{count}");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}
