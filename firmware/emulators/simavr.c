/* simavr.c - an AVR in the simulator simavr, its UART on a TCP port:  simavr MCU HZ FLASH.bin
 *
 * Writes "port N" to stdout, waits for one client, and runs until that leaves.
 * Built on demand: cc simavr.c -lsimavr. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>

enum { CHUNK = 2000, FLASH_MAX = 1 << 18 };

static int client;
static int may_send = 1; /* the UART's buffer takes more */

static void on_output(struct avr_irq_t *irq, uint32_t value, void *unused)
{
    uint8_t byte = (uint8_t)value;

    (void)irq;
    (void)unused;
    if (send(client, &byte, 1, MSG_NOSIGNAL) != 1) {
        exit(0);
    }
}

static void on_room(struct avr_irq_t *irq, uint32_t value, void *room)
{
    (void)irq;
    if (value) {
        may_send = room != NULL;
    }
}

/* The port that was free. */
static int open_port(int *listener)
{
    struct sockaddr_in at   = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          size = sizeof at;

    *listener = socket(AF_INET, SOCK_STREAM, 0);
    if (*listener < 0 || bind(*listener, (struct sockaddr *)&at, sizeof at) || listen(*listener, 1) ||
        getsockname(*listener, (struct sockaddr *)&at, &size)) {
        perror("simavr");
        exit(1);
    }
    return ntohs(at.sin_port);
}

static void await_client(int listener)
{
    int no_delay = 1;

    client = accept(listener, NULL, NULL);
    if (client < 0 || setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay)) {
        perror("simavr");
        exit(1);
    }
}

static avr_t *start(const char *mcu, const char *hz, const char *path)
{
    static uint8_t flash[FLASH_MAX];
    FILE          *file  = fopen(path, "rb");
    size_t         n     = file ? fread(flash, 1, sizeof flash, file) : 0;
    avr_t         *avr   = avr_make_mcu_by_name(mcu);
    uint32_t       flags = 0; /* no stdout, no sleep while the program polls */

    if (file) {
        (void)fclose(file);
    }
    if (!avr || !n) {
        (void)fprintf(stderr, "simavr: %s %s\n", avr ? "cannot read" : "does not know", avr ? path : mcu);
        exit(1);
    }
    avr_init(avr);
    avr->frequency = (uint32_t)strtoul(hz, NULL, 10);
    avr_loadcode(avr, flash, (uint32_t)n, 0);
    avr->codeend = avr->flashend;
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    return avr;
}

static avr_irq_t *uart(avr_t *avr, int which)
{
    return avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), which);
}

int main(int argc, char **argv)
{
    avr_t *avr;
    int    listener;

    if (argc != 4) {
        (void)fprintf(stderr, "simavr MCU HZ FLASH.bin\n");
        return 2;
    }
    avr = start(argv[1], argv[2], argv[3]);
    avr_irq_register_notify(uart(avr, UART_IRQ_OUTPUT), on_output, NULL);
    avr_irq_register_notify(uart(avr, UART_IRQ_OUT_XON), on_room, &may_send);
    avr_irq_register_notify(uart(avr, UART_IRQ_OUT_XOFF), on_room, NULL);
    printf("port %d\n", open_port(&listener));
    (void)fflush(stdout);
    await_client(listener);
    for (;;) {
        uint8_t byte;
        ssize_t got = may_send ? recv(client, &byte, 1, MSG_DONTWAIT) : -1;

        if (got == 0) {
            return 0;
        }
        if (got == 1) {
            avr_raise_irq(uart(avr, UART_IRQ_INPUT), byte);
        }
        for (int k = 0; k < CHUNK; k++) {
            int state = avr_run(avr);

            if (state == cpu_Done || state == cpu_Crashed) {
                (void)fprintf(stderr, "simavr: the program crashed at 0x%x\n", avr->pc);
                return 1;
            }
        }
    }
}
