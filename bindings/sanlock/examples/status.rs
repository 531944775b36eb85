//! Prints what the sanlock daemon tells: `status [SOCKET]`.

use std::time::Duration;

use nasd_sanlock::{Client, Detail, Result, SOCKET};

fn main() -> Result<()> {
    let socket = std::env::args().nth(1).unwrap_or_else(|| SOCKET.to_owned());
    let client = Client::new(socket, Duration::from_secs(2));
    println!("sanlock {}", client.version()?);
    println!("{:#?}", client.status(Detail::Resources)?);
    for lockspace in client.lockspaces()? {
        println!("{lockspace:?}");
        println!("{:#?}", client.hosts(&lockspace.name));
        println!("{:#?}", client.renewals(&lockspace.name));
    }
    Ok(())
}
