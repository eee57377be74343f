/* main.c - steps a model ten times a second on an ESP32 and prints what a step costs. */
#include <inttypes.h>
#include <stdio.h>

#include "esp_cpu.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
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

void app_main(void)
{
    int16_t x[MOTOR_N_IN];
    int32_t y[MOTOR_N_OUT] = {0};
    int     status         = stw_init(&stream, &motor, ram, sizeof ram);

    while (status >= STW_OK) {
        read_sensor(x);
        esp_cpu_cycle_count_t start = esp_cpu_get_cycle_count();
        status                      = stw_step(&stream, x, y);
        esp_cpu_cycle_count_t cost  = esp_cpu_get_cycle_count() - start;
        printf("y[0] = %" PRId32 " / 2^%d, %" PRIu32 " cycles\n", y[0], MOTOR_Y_FRAC, (uint32_t)cost);
        vTaskDelay(pdMS_TO_TICKS(100));
    }
    printf("stepwell: %s\n", stw_strerror(status));
}
