/* rp2040js.cjs - an RP2040 in the emulator rp2040js, UART0 on a TCP port:  node rp2040js.cjs FLASH.bin BAUD
 *
 * Writes "port N" to stdout, waits for one client, and runs until that leaves. Without arguments: is rp2040js installed? */
"use strict";
const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");

const CHUNK = 200000; /* instructions between two looks at the socket */
const BAUD_ERROR = 0.02; /* what two UARTs may differ by */
const IDLE_POLLS = 16; /* status reads in a row before the emulator sleeps until a byte comes */
const BOOT_BYTES = 256;
const BOOT_RAM = 0x20041f00; /* RP2040 datasheet 2.8.1: where the ROM puts the second stage, */
const ROM_STACK = 0x20041f00; /* and a stack for it, which it does not need */
const AIRCR = 0xd0c;

/* Where `npm install rp2040js` puts it, here or (-g) beside node. */
function library() {
    const beside = path.join(path.dirname(process.execPath), "..");
    const places = [beside, "/usr/local", "/opt/homebrew"].map((place) => path.join(place, "lib", "node_modules"));
    return require(require.resolve("rp2040js", { paths: [process.cwd(), __dirname, ...places] }));
}

function fail(words) {
    process.stderr.write(`rp2040js: ${words}\n`);
    process.exit(1);
}

/* CRC-32 as the ROM computes it: polynomial 0x04C11DB7, from all ones, not reflected. */
function romCrc(bytes) {
    let crc = 0xffffffff;
    for (const byte of bytes) {
        crc ^= byte << 24;
        for (let bit = 0; bit < 8; bit++) {
            crc = crc & 0x80000000 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
        }
    }
    return crc >>> 0;
}

/* What the boot ROM, which the emulator does not bring, does with a board that starts from flash. */
function boot(chip, flash) {
    const second = flash.subarray(0, BOOT_BYTES);
    if (flash.length < BOOT_BYTES || romCrc(second.subarray(0, -4)) !== second.readUInt32LE(BOOT_BYTES - 4)) {
        fail("the boot block's CRC is wrong: the ROM would not start this image");
    }
    chip.flash.set(flash);
    chip.sram.set(second, BOOT_RAM - 0x20000000);
    chip.core.SP = ROM_STACK;
    chip.core.PC = BOOT_RAM;
}

/* The rate that PLL, dividers and UART come to must be the one that the host would use. */
function checkBaud(uart, baud) {
    if (!(Math.abs(uart.baudRate / baud - 1) < BAUD_ERROR)) {
        fail(`the program sets its UART to ${uart.baudRate} baud, not to ${baud}`);
    }
}

class Line {
    constructor(client, uart, baud) {
        this.client = client;
        this.uart = uart;
        this.received = [];
        this.sent = [];
        this.polls = 0;
        uart.onByte = (byte) => {
            checkBaud(uart, baud);
            this.polls = 0;
            this.sent.push(byte);
        };
        const read = uart.readUint32.bind(uart);
        uart.readUint32 = (offset) => {
            this.fill();
            this.polls = uart.rxFIFO.empty ? this.polls + 1 : 0;
            return read(offset);
        };
        client.setNoDelay(true);
    }

    fill() {
        while (this.received.length && !this.uart.rxFIFO.full) {
            this.uart.feedByte(this.received.shift());
        }
    }

    flush() {
        if (this.sent.length) {
            this.client.write(Buffer.from(this.sent));
            this.sent = [];
        }
    }

    get idle() {
        return this.polls >= IDLE_POLLS;
    }
}

function run(chip, line) {
    let asleep = false;
    const chunk = () => {
        asleep = false;
        for (let k = 0; k < CHUNK && !line.idle; k++) {
            const cycles = chip.core.executeInstruction();
            chip.clock.tick((cycles * 1e9) / chip.clkSys);
        }
        line.flush();
        if (line.idle) {
            asleep = true;
        } else {
            setImmediate(chunk);
        }
    };
    line.client.on("data", (bytes) => {
        line.received.push(...bytes);
        line.polls = 0;
        if (asleep) {
            setImmediate(chunk);
            asleep = false;
        }
    });
    chunk();
}

function machine(rp2040js, flash) {
    const chip = new rp2040js.RP2040();
    const write = chip.ppb.writeUint32.bind(chip.ppb);
    chip.logger = { debug() {}, info() {}, warn() {}, error: (part, words) => fail(`${part}: ${words}`) };
    chip.ppb.writeUint32 = (offset, value) => {
        if (offset === AIRCR) {
            fail("the program asks for a reset: a fault");
        }
        write(offset, value);
    };
    boot(chip, flash);
    return chip;
}

function main() {
    const rp2040js = library();
    if (process.argv.length < 3) {
        return;
    }
    const baud = Number(process.argv[3]);
    const chip = machine(rp2040js, fs.readFileSync(process.argv[2]));
    const server = net.createServer((client) => {
        server.close();
        client.on("close", () => process.exit(0));
        client.on("error", () => process.exit(0));
        run(chip, new Line(client, chip.uart[0], baud));
    });
    server.listen(0, "127.0.0.1", () => process.stdout.write(`port ${server.address().port}\n`));
}

main();
