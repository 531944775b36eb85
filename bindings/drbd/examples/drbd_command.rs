//! One command on one resource, and what it came to: `drbd_command <resource> <command>` with
//! primary, secondary, outdate, disconnect, disconnect-forced, save-connection <file>,
//! connect <file>, timeout-type <volume>.
//!
//! For the lab: it proves nothing before it promotes.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use nasd_drbd::{CommandQueue, ConnKey, ConnectSpec, Drbd, Force};

const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [resource, command, rest @ ..] = words.as_slice() else {
        return Err("usage: drbd_command <resource> <command> [argument]".into());
    };
    let mut drbd = Drbd::open()?;
    let status = drbd.status_of(resource)?;
    let key = status.connections.first().map_or(ConnKey::Only, |connection| connection.key);
    if *command == "save-connection" {
        let spec = status.connections.first().and_then(ConnectSpec::of);
        let file = rest.first().ok_or("no file")?;
        fs::write(file, spec.ok_or("the kernel does not know the connection")?.to_bytes())?;
        return Ok(());
    }
    let began = Instant::now();
    let result = execute(&drbd.commands(resource)?, key, command, rest);
    println!("{command}: {result:?} after {:?}", began.elapsed());
    result.map(|_| ())
}

fn execute(
    queue: &CommandQueue,
    key: ConnKey,
    command: &str,
    rest: &[&str],
) -> Result<String, Box<dyn Error>> {
    let outcome = match command {
        "primary" => queue.primary(Force::No, DEADLINE)?,
        "secondary" => queue.secondary(Duration::from_millis(200), DEADLINE)?,
        "outdate" => queue.outdate(DEADLINE)?,
        "disconnect" => queue.disconnect_graceful(key, DEADLINE)?,
        "disconnect-forced" => queue.disconnect_forced(key, DEADLINE)?,
        "connect" => {
            let stored = fs::read(rest.first().ok_or("no file")?)?;
            queue.connect(ConnectSpec::from_bytes(&stored)?, DEADLINE)?
        }
        "timeout-type" => {
            let volume = rest.first().ok_or("no volume")?.parse()?;
            return Ok(queue.get_timeout_type(volume, key, DEADLINE)?.to_string());
        }
        other => return Err(format!("unknown command {other}").into()),
    };
    Ok(format!("{outcome:?}"))
}
