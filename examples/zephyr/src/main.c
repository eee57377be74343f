/* main.c - steps a model ten times a second under Zephyr and prints what a step costs. */
#include <zephyr/kernel.h>
#include <zephyr/sys/printk.h>

#include "motor.h"

static STW_ALIGN4 uint8_t ram[MOTOR_RAM_BYTES];
static stw_stream         stream;

/* In place of a sensor; motor_x_code() makes codes of real numbers. */
static void read_sensor(int16_t x[MOTOR_N_IN])
{
    for (int j = 0; j < MOTOR_N_IN; j++) {
        x[j] = 0;
    }
}

int main(void)
{
    int16_t x[MOTOR_N_IN];
    int32_t y[MOTOR_N_OUT] = {0};
    int     status         = stw_init(&stream, &motor, ram, sizeof ram);

    while (status >= STW_OK) {
        uint32_t start;

        read_sensor(x);
        start  = k_cycle_get_32();
        status = stw_step(&stream, x, y);
        start  = k_cycle_get_32() - start;
        printk("y[0] = %d / 2^%d, %u cycles\n", (int)y[0], MOTOR_Y_FRAC, (unsigned int)start);
        k_msleep(100);
    }
    printk("stepwell: %s\n", stw_strerror(status));
    return 0;
}
