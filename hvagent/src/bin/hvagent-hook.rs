//! libvirt's hook for QEMU: asks the agent whether a guest may start or arrive while storage moves.
//!
//! Called as `hvagent-hook GUEST OPERATION SUB-OPERATION EXTRA` with the guest's XML on standard input;
//! put a link to it at `/etc/libvirt/hooks/qemu`, or into `/etc/libvirt/hooks/qemu.d/`, and restart
//! libvirtd once. Exit code 0 lets libvirt go on, 1 makes it give up; standard output stays empty, which
//! libvirt takes for "the XML as it is".
//!
//! Asked about: `prepare begin` (a start, also of the process for a migration that arrives), `restore
//! begin`, and `migrate begin`. The last one is called on the **destination** of a migration, before
//! its guest exists there; at the source no hook is called. Everything else is let pass: after `reconnect`
//! libvirt would kill a running guest if this program failed.
//!
//! Keeps S11, and its exception to S12: an agent that is gone or silent holds nobody back, after two
//! seconds at most (five, if it had said "wait" before). All waiting has an end: [`START`] for a start,
//! as libvirt keeps the guest locked meanwhile; [`MIGRATE`] for a migration, for which libvirt itself
//! has no limit, but who began it usually gives up after 120 s. Nothing here calls libvirt, which waits for
//! this program; nothing touches a disk of the guest. Only the standard library, so that it starts at
//! once and takes nothing of the host's memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Where the agent listens.
const SOCKET: &str = "/run/hvagent/socket";
/// Where libvirt keeps the definitions of pools.
const POOLS: &str = "/etc/libvirt/storage";
/// For an agent that does not answer.
const SILENCE: Duration = Duration::from_secs(2);
/// The same, once it has said "wait": it may just be started anew.
const SILENCE_AFTER_WAIT: Duration = Duration::from_secs(5);
/// The longest wait of a start.
const START: Duration = Duration::from_secs(60);
/// The longest wait of a migration.
const MIGRATE: Duration = Duration::from_secs(110);
/// Between two questions while waiting, at most: the phase may end sooner than promised.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between two attempts to reach the agent.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// libvirt writes the XML at once.
const INPUT: Duration = Duration::from_secs(1);
/// The longest XML that is read.
const LONGEST_XML: u64 = 4 << 20;
/// The longest line either side sends.
const LONGEST_LINE: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    // Always read: libvirt writes it whatever is done with it.
    let input = within(INPUT, read_input).unwrap_or_default();
    let Some((guest, operation, limit)) = asked_about(&arguments) else { return ExitCode::SUCCESS };
    let Some(disks) = disks(&input, Path::new(POOLS)) else {
        return pass(guest, "its XML is not understood");
    };
    let question = question(guest, operation, uuid(&input).as_deref(), &disks);
    if question.len() > LONGEST_LINE {
        return pass(guest, "it has too many disks");
    }
    decide(guest, operation, limit, &question)
}

/// The guest, the agent's word for the operation and the longest wait.
fn asked_about(arguments: &[String]) -> Option<(&str, &'static str, Duration)> {
    let [guest, operation, sub, ..] = arguments else { return None };
    match (operation.as_str(), sub.as_str()) {
        ("migrate", "begin") => Some((guest, "migrate", MIGRATE)),
        ("prepare" | "restore", "begin") => Some((guest, "start", START)),
        _ => None,
    }
}

fn pass(guest: &str, why: &str) -> ExitCode {
    eprintln!("hvagent-hook: {guest} goes on unchecked: {why}");
    ExitCode::SUCCESS
}

fn refuse(guest: &str, why: &str) -> ExitCode {
    eprintln!("hvagent-hook: {guest} is refused: {why}");
    ExitCode::FAILURE
}

/// Asks until there is a yes, a no, or no time left.
fn decide(guest: &str, operation: &str, limit: Duration, question: &str) -> ExitCode {
    let limit = time_from_environment("HVAGENT_HOOK_LIMIT_MS").unwrap_or(limit);
    let end = Instant::now() + limit;
    let mut silence = SILENCE;
    loop {
        match insist(question, silence) {
            Ok(Answer::Allow) => return ExitCode::SUCCESS,
            Ok(Answer::Refuse(why)) => return refuse(guest, &why),
            Ok(Answer::Wait(time, why)) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let waited = limit.as_secs();
                    let why = format!(
                        "{operation} waited for {waited} s, and the storage still moves ({why}); \
                         try again when `hvagent status` says that it does not"
                    );
                    return refuse(guest, &why);
                }
                std::thread::sleep(time.clamp(Duration::from_millis(50), ASK_AGAIN).min(left));
                silence = SILENCE_AFTER_WAIT;
            }
            Err(why) => return pass(guest, &why),
        }
    }
}

/// For tests: libvirt gives its hooks an environment of its own.
fn time_from_environment(name: &str) -> Option<Duration> {
    std::env::var(name).ok()?.parse().ok().map(Duration::from_millis)
}

/// Asks for as long as the agent may be silent.
fn insist(question: &str, silence: Duration) -> Result<Answer, String> {
    let end = Instant::now() + silence;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let line = question.to_owned();
        let why = match within(left, move || ask(&line)) {
            Some(Ok(line)) => {
                return Answer::of(&line)
                    .ok_or_else(|| format!("the agent's answer is not understood: {line:.200}"));
            }
            Some(Err(error)) => format!("the agent is not there ({error})"),
            None => format!("the agent did not answer within {} s", silence.as_secs()),
        };
        if Instant::now() + TRY_AGAIN >= end {
            return Err(why);
        }
        std::thread::sleep(TRY_AGAIN);
    }
}

/// Does something that may hang, and leaves it hanging when its time is over.
fn within<T: Send + 'static>(
    limit: Duration,
    what: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(limit).ok()
}

fn read_input() -> String {
    let mut bytes = Vec::new();
    let _ = std::io::stdin().lock().take(LONGEST_XML + 1).read_to_end(&mut bytes);
    if bytes.len() as u64 > LONGEST_XML {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn ask(question: &str) -> std::io::Result<String> {
    let socket = std::env::var_os("HVAGENT_SOCKET").map_or_else(|| SOCKET.into(), PathBuf::from);
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(question.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE as u64)).read_line(&mut line)?;
    match line.is_empty() {
        true => Err(std::io::ErrorKind::UnexpectedEof.into()),
        false => Ok(line),
    }
}

fn question(guest: &str, operation: &str, uuid: Option<&str>, disks: &[String]) -> String {
    let disks: Vec<String> = disks.iter().map(|disk| quoted(disk)).collect();
    let uuid = uuid.map(|uuid| format!("\"uuid\":{},", quoted(uuid))).unwrap_or_default();
    format!(
        "{{\"ask\":\"hook\",\"domain\":{},\"operation\":{},{uuid}\"disks\":[{}]}}\n",
        quoted(guest),
        quoted(operation),
        disks.join(",")
    )
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What the agent says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Wait(Duration, String),
    Refuse(String),
}

impl Answer {
    fn of(line: &str) -> Option<Self> {
        let fields = object(line)?;
        let get = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, v)| v.clone());
        let reason = get("reason").unwrap_or_else(|| "it gives no reason".to_owned());
        match get("verdict")?.as_str() {
            "allow" => Some(Self::Allow),
            "refuse" => Some(Self::Refuse(reason)),
            "wait" => {
                Some(Self::Wait(Duration::from_millis(get("wait_ms")?.parse().ok()?), reason))
            }
            _ => None,
        }
    }
}

/// A flat JSON object as names and values; numbers and words as their letters.
fn object(line: &str) -> Option<Vec<(String, String)>> {
    let mut rest = line.trim().strip_prefix('{')?.trim_start();
    let mut fields = Vec::new();
    while !rest.starts_with('}') {
        let (name, after) = string(rest)?;
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = if after.starts_with('"') { string(after)? } else { bare(after)? };
        fields.push((name, value));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
    (rest == "}").then_some(fields)
}

fn bare(text: &str) -> Option<(String, &str)> {
    let end = text.find([',', '}'])?;
    let (word, rest) = text.split_at(end);
    let word = word.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
    (!word.is_empty() && word.chars().all(plain)).then(|| (word.to_owned(), rest))
}

fn string(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut out = String::new();
    loop {
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\\' => out.push(escape(&mut chars)?),
            c => out.push(c),
        }
    }
}

/// One escape; a half of a pair outside the basic plane becomes a replacement character.
fn escape(chars: &mut std::str::Chars<'_>) -> Option<char> {
    Some(match chars.next()? {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' | 'f' => ' ',
        'u' => {
            let digits: String = chars.take(4).collect();
            char::from_u32(u32::from_str_radix(&digits, 16).ok()?).unwrap_or('\u{fffd}')
        }
        c @ ('"' | '\\' | '/') => c,
        _ => return None,
    })
}

/// The guest's uuid: libvirt writes it before everything else that has one. By it the agent at the source's
/// side is told that the arrival waits.
fn uuid(xml: &str) -> Option<String> {
    let (_, rest) = xml.split_once("<uuid>")?;
    let uuid = rest.split_once("</uuid>")?.0.trim();
    let shaped = uuid.len() == 36 && uuid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    shaped.then(|| uuid.to_ascii_lowercase())
}

/// The paths of a guest's disks and leases; `None` when the text is not a guest's XML. A volume is where
/// its pool's definition says that the pool is.
fn disks(xml: &str, pools: &Path) -> Option<Vec<String>> {
    let (mut paths, mut is_domain) = (Vec::new(), false);
    for tag in tags(xml) {
        let tag = tag?;
        let absolute = |name: &str| tag.get(name).filter(|value| value.starts_with('/'));
        match tag.name {
            "domain" => is_domain = true,
            "source" => {
                paths.extend(["file", "dev", "dir"].iter().filter_map(|name| absolute(name)));
                paths.extend(tag.get("pool").and_then(|pool| volume(&pool, pools)));
            }
            // Of a lease; the targets of other devices have no path.
            "target" => paths.extend(absolute("path")),
            _ => {}
        }
    }
    paths.sort();
    paths.dedup();
    is_domain.then_some(paths)
}

/// Where a pool is. Pools that are not defined for good are not found.
fn volume(pool: &str, pools: &Path) -> Option<String> {
    if pool.is_empty() || pool.contains('/') {
        return None;
    }
    let mut xml = String::new();
    let file = std::fs::File::open(pools.join(format!("{pool}.xml"))).ok()?;
    file.take(LONGEST_XML).read_to_string(&mut xml).ok()?;
    let (_, target) = xml.split_once("<target>")?;
    let (_, path) = target.split_once("<path>")?;
    Some(plain(path.split_once("</path>")?.0.trim()))
}

/// A tag with its attributes as they are written.
struct Tag<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
}

impl Tag<'_> {
    fn get(&self, name: &str) -> Option<String> {
        self.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| plain(value))
    }
}

/// All opening tags of a text; ends with `None` where it is no XML any more.
fn tags(xml: &str) -> impl Iterator<Item = Option<Tag<'_>>> {
    let mut rest = Some(xml);
    std::iter::from_fn(move || {
        loop {
            let after = rest?.split_once('<')?.1;
            let skipped = if after.starts_with("!--") {
                Some("-->")
            } else if after.starts_with("![CDATA[") {
                Some("]]>")
            } else {
                after.starts_with(['?', '!', '/']).then_some(">")
            };
            match skipped {
                Some(end) => rest = after.split_once(end).map(|(_, after)| after),
                None => {
                    let tag = tag(after);
                    rest = tag.as_ref().map(|(_, after)| *after);
                    return Some(tag.map(|(tag, _)| tag));
                }
            }
        }
    })
}

/// The tag at the beginning of a text, without its bracket, and what follows it.
fn tag(text: &str) -> Option<(Tag<'_>, &str)> {
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, '>' | '/'))?;
    let (name, mut rest) = text.split_at(end);
    let mut attributes = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if let Some(after) = rest.strip_prefix('>') {
            return Some((Tag { name, attributes }, after));
        }
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let (value, after) = after.get(1..)?.split_once(quote)?;
        attributes.push((key.trim(), value));
        rest = after;
    }
}

/// Text without XML's references.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let known = after.split_once(';').and_then(|(name, after)| Some((reference(name)?, after)));
        match known {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out + rest
}

fn reference(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XML: &str = "<?xml version='1.0'?><!-- <source file='/no'/> --><domain type='kvm'>\
        <name>a</name><devices><disk type='file'><source file='/vms/a &amp; b.raw' index='1'/>\
        <backingStore><source file=\"/vms/base\"/></backingStore></disk>\
        <disk><source dev='/dev/vg/lv'/></disk><interface><source dev='eth0'/></interface>\
        <disk type='volume'><source pool='p' volume='v'/></disk>\
        <lease><target path='/leases/x' offset='0'/></lease><target dev='vda'/></devices></domain>";

    #[test]
    fn the_guest_s_own_uuid_is_found() {
        let xml = "<domain><name>a</name><uuid>\n 6E617364-6775-4573-8000-000000000001</uuid>\
                   <x><uuid>6e617364-6775-4573-8000-000000000002</uuid></x></domain>";
        assert_eq!(uuid(xml).as_deref(), Some("6e617364-6775-4573-8000-000000000001"));
        for bad in
            ["", "<uuid>x</uuid>", "<uuid>", "<uuid>\"}------------------------------------</uuid>"]
        {
            assert_eq!(uuid(bad), None, "{bad}");
        }
        let asked = question("a", "migrate", Some("u"), &[]);
        assert!(asked.contains("\"uuid\":\"u\",\"disks\":[]"), "{asked}");
    }

    #[test]
    fn disks_backing_files_leases_and_volumes_are_found() {
        let pools = tempfile::tempdir().unwrap();
        let pool = "<pool><source/><target><path>/vms/pool</path></target></pool>";
        std::fs::write(pools.path().join("p.xml"), pool).unwrap();
        let paths = ["/dev/vg/lv", "/leases/x", "/vms/a & b.raw", "/vms/base", "/vms/pool"];
        assert_eq!(disks(XML, pools.path()).unwrap(), paths);
        assert_eq!(volume("../p", pools.path()), None);
    }

    #[test]
    fn what_is_no_guest_is_none() {
        for xml in
            ["", "rubbish", "<network/>", "<domain><source file='/a", "<domain><a b></domain>"]
        {
            assert_eq!(disks(xml, Path::new("/none")), None, "{xml}");
        }
    }

    #[test]
    fn only_what_begins_is_asked_about() {
        let of = |operation: &str, sub: &str| {
            let words = ["vm", operation, sub, "-"].map(str::to_owned);
            asked_about(&words).map(|(_, operation, _)| operation)
        };
        assert_eq!(of("migrate", "begin"), Some("migrate"));
        assert_eq!(
            (of("prepare", "begin"), of("restore", "begin")),
            (Some("start"), Some("start"))
        );
        for operation in ["reconnect", "start", "started", "stopped", "release", "attach"] {
            assert_eq!((of(operation, "begin"), of(operation, "end")), (None, None));
        }
        assert_eq!(asked_about(&[]), None);
    }

    #[test]
    fn answers_are_read() {
        let wait = "{\"verdict\":\"wait\",\"wait_ms\":1500,\"reason\":\"a \\\"b\\\"\\u0041\"}\n";
        let reason = "a \"b\"A".to_owned();
        assert_eq!(Answer::of(wait), Some(Answer::Wait(Duration::from_millis(1500), reason)));
        assert_eq!(Answer::of(" { \"verdict\" : \"allow\" } "), Some(Answer::Allow));
        for rubbish in
            ["", "{}", "[]", "{\"verdict\":\"maybe\"}", "{\"verdict\":\"wait\"}", "{\"verdict\""]
        {
            assert_eq!(Answer::of(rubbish), None, "{rubbish}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,200}", tail in "[<>='\"/ a&;!-]{0,60}") {
            let _ = disks(&format!("<domain{tail}"), Path::new("/none"));
            let _ = disks(&text, Path::new("/none"));
            let _ = Answer::of(&text);
            let _ = plain(&tail);
        }

        #[test]
        fn what_is_asked_is_json(guest in any::<String>(), disk in any::<String>()) {
            let question = question(&guest, "start", None, std::slice::from_ref(&disk));
            let json: serde_json::Value = serde_json::from_str(&question).unwrap();
            prop_assert_eq!(json["domain"].as_str(), Some(guest.as_str()));
            prop_assert_eq!(json["disks"][0].as_str(), Some(disk.as_str()));
        }

        #[test]
        fn reasons_come_through(reason in any::<String>()) {
            let line = serde_json::json!({"verdict": "refuse", "reason": reason.as_str()}).to_string();
            prop_assert_eq!(Answer::of(&line), Some(Answer::Refuse(reason)));
        }
    }
}
